"""What two processes do together in the tests: `python processes.py RANK FOLDER` writes what it saw as JSON.

Every check is a function that returns plain numbers; both processes run all of them in the same order.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.join import Join
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import polyak
from catalogue import METHODS, Problem, flat

SIZE = 2
STEPS = 4
SETS: dict[str, Callable[[int], polyak.Constraint | None]] = {
    "none": lambda n: None,
    "L2Ball": lambda n: polyak.L2Ball(1.0),
    "L1Ball": lambda n: polyak.L1Ball(1.0),
    "Box": lambda n: polyak.Box(-0.5, 0.5),
    "Simplex": lambda n: polyak.Simplex(2.0),
    "Halfspace": lambda n: polyak.Halfspace(torch.linspace(-1.0, 2.0, n, dtype=torch.float64), 0.5),
    "Affine": lambda n: polyak.Affine(torch.linspace(-1.0, 2.0, n, dtype=torch.float64)[None], torch.tensor([0.5])),
}
SHAPES = ((4, 2), (3,), (5, 3))
PLACEMENTS = ([Shard(0)], [Replicate()], [Shard(0)])  # five rows on two processes: unequal pieces


def problem() -> Problem:
    return Problem.make(shapes=SHAPES, batches=SIZE)


def whole_batch(params: list[Tensor], t: int) -> Tensor:
    """Return the loss of both processes' data, or step t's own if the batches differ from step to step."""
    return torch.stack([problem().loss(params, batch) for batch in range(SIZE)]).mean()


def alone(name: str, form: str, constraint: str) -> list[float]:
    """Run one process on all the data."""
    params = problem().params()
    optimizer = build(name, form, constraint, params)
    for t in range(STEPS):
        optimizer.zero_grad()
        loss = whole_batch(params, t)
        loss.backward()
        optimizer.step(loss=loss)
    return flat(params).tolist()


def replicated(name: str, form: str, constraint: str, **options: Any) -> list[float]:
    """Run on this process's data; the gradients are averaged as DDP does it, the loss is left to the optimizer."""
    params = problem().params()
    optimizer = build(name, form, constraint, params, **options)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = problem().loss(params, dist.get_rank())
        loss.backward()
        for p in params:
            dist.all_reduce(p.grad)
            p.grad /= SIZE
        optimizer.step(loss=loss)
    return flat(params).tolist()


def sharded(name: str, form: str, constraint: str, mesh: DeviceMesh) -> list[float]:
    """Run on parameters of which each process holds a part; their gradients have the same layout."""
    start = problem().params()
    pairs = zip(start, PLACEMENTS, strict=True)
    params = [nn.Parameter(distribute_tensor(p.detach(), mesh, layout)) for p, layout in pairs]
    optimizer = build(name, form, constraint, params)
    for t in range(STEPS):
        copies = [p.detach().full_tensor().requires_grad_() for p in params]
        loss = whole_batch(copies, t)
        loss.backward()
        for p, copy, layout in zip(params, copies, PLACEMENTS, strict=True):
            p.grad = distribute_tensor(copy.grad, mesh, layout)
        optimizer.step(loss=problem().loss(copies, dist.get_rank()).detach())
    return flat([p.detach().full_tensor() for p in params]).tolist()


def gradients_of_another_layout(mesh: DeviceMesh) -> list[float]:
    """Replicated gradients of a sharded parameter are cut to its layout."""
    w = nn.Parameter(distribute_tensor(torch.ones(4, dtype=torch.float64), mesh, [Shard(0)]))
    optimizer = polyak.ALIG([w], lr=0.5)
    w.grad = distribute_tensor(torch.arange(4.0, dtype=torch.float64), mesh, [Replicate()])
    optimizer.step(loss=100.0)
    return w.detach().full_tensor().tolist()


def a_part_each() -> list[float]:
    """Each process owns some parameters, as in ZeroRedundancyOptimizer; the whole norm is handed in."""
    params = problem().params()
    mine = params[dist.get_rank() :: SIZE]
    optimizer = build("ALIG", "nesterov", "none", mine)
    for t in range(STEPS):
        for p in params:
            p.grad = None
        loss = whole_batch(params, t)
        loss.backward()
        norm = sum(p.grad.square().sum() for p in params)
        optimizer.step(loss=loss, grad_sq_norm=norm)
        for i, p in enumerate(params):
            dist.broadcast(p.detach(), src=i % SIZE)
    return flat(params).tolist()


def disagreement() -> str:
    """Processes that hold different parameters and know no common norm."""
    optimizer = polyak.ALIG([nn.Parameter(torch.ones(2 + dist.get_rank()))])
    optimizer.param_groups[0]["params"][0].grad = torch.ones(2 + dist.get_rank())
    try:
        optimizer.step(loss=1.0)
    except RuntimeError as error:
        return str(error)
    return "no error"


def model_per_process(steps: int, **options: Any) -> list[Any]:
    """Train a model of each process's own from equal weights; return the step that was refused, and why."""
    params = problem().params()
    optimizer = polyak.ALIG(params, lr=0.1, **options)
    for t in range(steps):
        optimizer.zero_grad()
        loss = problem().loss(params, dist.get_rank())
        loss.backward()
        try:
            optimizer.step(loss=loss)
        except RuntimeError as error:
            return [t, str(error)]
    return [steps, ""]


def joined(context: str) -> str:
    """Train on unequal numbers of batches inside join(), after a step outside of it; return why that is refused."""
    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(nn.Linear(2, 1))
    optimizer = polyak.ALIG(model.parameters(), lr=0.1)

    def step() -> None:
        optimizer.zero_grad()
        loss = model(torch.ones(4, 2)).square().mean()
        loss.backward()
        optimizer.step(loss=loss)

    if context == "second epoch":
        step()
    before = [p.detach().clone() for p in model.parameters()]
    try:
        with Join([model]) if context == "Join" else model.join():
            for _ in range(1 + dist.get_rank()):
                step()
    except RuntimeError as error:
        return str(error) if all(map(torch.equal, before, model.parameters())) else "moved"
    return "no error"


def two_groups_of_one() -> list[float]:
    """A process group of one process each: nothing is averaged."""
    own = [dist.new_group([rank]) for rank in range(SIZE)][dist.get_rank()]
    w = nn.Parameter(torch.zeros(1))
    optimizer = polyak.ALIG([w], lr=10.0, eps=0.0, process_group=own)
    w.grad = torch.ones(1)
    optimizer.step(loss=1.0 + dist.get_rank())
    return w.tolist()


def build(name: str, form: str, constraint: str, params: list[Tensor], **options: Any) -> polyak.PolyakOptimizer:
    """Return a method whose step size always follows the loss."""
    method = next(method for method in METHODS if method.name == name)
    size = sum(p.numel() for p in params)
    return method.build(params, form, lr=math.inf, constraint=SETS[constraint](size), **options)


def rows() -> list[tuple[str, str, str]]:
    """Every form of every method without a constraint, and every constraint with the first."""
    forms = [(method.name, form, "none") for method in METHODS for form in method.momenta]
    return [*forms, *((METHODS[0].name, "nesterov", constraint) for constraint in SETS if constraint != "none")]


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=SIZE)
    mesh = init_device_mesh("cpu", (SIZE,))
    found: dict[str, Any] = {}
    for row in rows():
        found[f"replicated {row}"] = replicated(*row)
        found[f"sharded {row}"] = sharded(*row, mesh)
    found["not synchronised"] = replicated("ALIG", "none", "none", sync_loss=False)
    found["another layout"] = gradients_of_another_layout(mesh)
    found["a part each"] = a_part_each()
    found["disagreement"] = disagreement()
    found["model per process"] = model_per_process(12)
    found["model per process, told so"] = model_per_process(12, sync_loss=False)
    for context in ("first epoch", "second epoch", "Join"):
        found[f"join {context}"] = joined(context)
    found["groups of one"] = two_groups_of_one()
    (folder / f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
