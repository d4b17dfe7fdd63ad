"""What a step of sharded parameters sends: counted in a process of `processes.py`."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed import _functional_collectives as collectives
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard, distribute_tensor

import polyak
from catalogue import METHODS
from problem import Problem

SHAPES = ((4, 2), (3,), (5, 3))
MESSAGES = {  # the loss and ‖g‖²; averages; ⟨g, v⟩, ‖·‖₁ or nuclear norms
    ("ALIG", "nesterov"): 2,
    ("ALIG", "adjusted"): 3,
    ("SAMSPS", "none"): 5,
    ("ALIGPlus", "nesterov"): 2,
    ("SafeSPS", "none"): 2,
    ("SafeSPS", "heavy ball"): 3,
    ("IAM", "heavy ball"): 3,
    ("IAMAdam", "heavy ball"): 4,
    ("ScheduleFreeSPS", "averaged"): 3,
    ("ScheduleFreeAdamSPS", "averaged"): 4,
    ("ScheduleFreePlus", "averaged"): 5,
    ("MoMo", "none"): 3,
    ("MoMoAdam", "none"): 3,
    ("NGNMD", "none"): 3,
    ("SignSPS", "none"): 4,
    ("MuonMoMo", "none"): 4,
}


def sent(name: str, form: str, mesh: DeviceMesh, constraint: polyak.Constraint | None = None) -> int:
    """How many sums cross the processes in a step of three groups of sharded parameters."""
    whole = Problem.make(shapes=SHAPES).params()
    params = [nn.Parameter(distribute_tensor(p.detach(), mesh, [Shard(0)])) for p in whole]
    groups: Any = [{"params": [p], "lr": 1e-3} for p in params]
    method = next(method for method in METHODS if method.name == name)
    optimizer, count, all_reduce = method.build(groups, form, constraint=constraint), [0], collectives.all_reduce

    def counted(*args: Any) -> Any:
        count[0] += 1
        return all_reduce(*args)

    for _ in range(2):
        for p in params:
            p.grad = torch.ones_like(p)
        collectives.all_reduce, count[0] = counted, 0
        try:
            optimizer.step(loss=1.0)
        finally:
            collectives.all_reduce = all_reduce
    return count[0]
