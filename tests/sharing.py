"""What processes share beside the loss, for `processes.py`: bounds of calls, radii, and the type of a message."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor

import polyak
from catalogue import METHODS
from messages import SHAPES
from problem import Problem, flat

SIZE, STEPS = 2, 3
BOUNDS = ((-1.0, 0.05, -3.0), (-2.0, 0.15, 1.0))  # of each process in each step


def refusal(make: Callable[[], Any]) -> str:
    """Return what is said, or "no error"."""
    try:
        make()
    except (RuntimeError, ValueError, TypeError) as error:
        return str(error)
    return "no error"


def problem() -> Problem:
    return Problem.make(shapes=SHAPES, batches=SIZE)


def build(method: Any, params: Sequence[Tensor]) -> polyak.PolyakOptimizer:
    return method.build(params, lr=1.0 if method.factor else 0.5)


def mean_batch(params: Sequence[Tensor]) -> Tensor:
    return torch.stack([problem().loss(params, batch) for batch in range(SIZE)]).mean()


def alone(method: Any) -> list[float]:
    """Run one process on the data of both, above the mean of their bounds."""
    params = problem().params()
    optimizer = build(method, params)
    for t in range(STEPS):
        optimizer.zero_grad()
        loss = mean_batch(params)
        loss.backward()
        optimizer.step(loss=loss, lower_bound=sum(bounds[t] for bounds in BOUNDS) / SIZE)
    return flat(params).tolist()


def replicated(method: Any, rank: int) -> list[float]:
    """Run replicas, each with the loss and the bound of its own batch."""
    params = problem().params()
    optimizer = build(method, params)
    for t in range(STEPS):
        optimizer.zero_grad()
        loss = problem().loss(params, rank)
        loss.backward()
        for p in params:
            dist.all_reduce(p.grad)
            p.grad /= SIZE
        optimizer.step(loss=loss, lower_bound=torch.tensor(BOUNDS[rank][t], dtype=torch.float64))
    return flat(params).tolist()


def sharded(method: Any, rank: int, mesh: DeviceMesh) -> list[float]:
    """Run the same on shards."""
    params = [nn.Parameter(distribute_tensor(p.detach(), mesh, [Shard(0)])) for p in problem().params()]
    optimizer = build(method, params)
    for t in range(STEPS):
        copies = [p.detach().full_tensor().requires_grad_() for p in params]
        mean_batch(copies).backward()
        for p, copy in zip(params, copies, strict=True):
            p.grad = distribute_tensor(copy.grad, mesh, [Shard(0)])
        optimizer.step(loss=problem().loss(copies, rank).detach(), lower_bound=BOUNDS[rank][t])
    return flat([p.detach().full_tensor() for p in params]).tolist()


def a_bound_on_one_process(rank: int, first: int) -> list[Any]:
    """Give a bound on rank 0 alone, from one of the steps on; return what is said, and how often it moved."""
    w = nn.Parameter(torch.ones(2))
    optimizer, moved = polyak.ALIG([w], lr=0.1), 0
    for t in range(first + 1):
        before = w.detach().clone()
        w.grad = torch.ones(2)
        given = {"lower_bound": 0.5} if rank == 0 and t >= first else {}
        sentence = refusal(lambda given=given: optimizer.step(loss=1.0, **given))
        moved += not torch.equal(w, before)
    return [sentence, moved]


def a_relative_ball(kind: str, rank: int) -> list[float]:
    """Build weights of each process's own and a relative ball before DDP; return radius, norm, saved radius."""
    torch.manual_seed(rank)
    net = nn.Sequential(nn.Linear(4, 2, bias=False), nn.Linear(2, 1, bias=False)).double()
    ball = polyak.L2Ball(relative=1.5)
    groups: list[Any] = [{"params": [p]} for p in net.parameters()]
    if kind == "group":
        groups[0]["constraint"] = ball
    if kind == "FSDP2":
        fully_shard(net)
        groups = [{"params": [p]} for p in net.parameters()]
    optimizer = polyak.ALIG(groups, lr=0.1, lower_bound=-1e9, constraint=None if kind == "group" else ball)
    model: Any = net if kind == "FSDP2" else nn.parallel.DistributedDataParallel(net)
    weights = [p.detach().clone() for p in (list(net.parameters())[:1] if kind == "group" else net.parameters())]
    norm = math.sqrt(sum(float(getattr(p, "full_tensor", lambda p=p: p)().square().sum()) for p in weights))
    if kind == "replaced":
        optimizer._constraint = polyak.L2Ball(3.0)
    given = {"grad_sq_norm": 1.0} if kind == "clipped" else {}
    for _ in range(2):
        optimizer.zero_grad()
        loss = -model(torch.ones(2, 4, dtype=torch.float64)).mean()
        loss.backward()
        optimizer.step(loss=loss, **given)
    found = optimizer.param_groups[0]["constraint"] if kind == "group" else optimizer._constraint
    kept = optimizer.state_dict()["param_groups"][0]["l2_ball_radius"]
    return [found.radius, norm, kept]


def a_process_without_parameters(rank: int) -> list[float]:
    """Step with float64 parameters on rank 0 alone, as ZeroRedundancyOptimizer may deal them."""
    params = [nn.Parameter(torch.ones(2, dtype=torch.float64))] if rank == 0 else []
    optimizer = polyak.ALIG([{"params": params}], lr=math.inf)
    for p in params:
        p.grad = torch.ones_like(p)
    loss = torch.tensor(0.1 + 0.2 * rank, dtype=torch.float64)
    return [float(optimizer.step(loss=loss, grad_sq_norm=2.0)), *(w for p in params for w in p.tolist())]


def unequal_batches(rank: int) -> list[Any]:
    """Give ALIGPlus two samples on one process and three on the other, after a step of two on each; then go on."""
    w = nn.Parameter(torch.ones(2))
    optimizer, said = polyak.ALIGPlus([w], samples=5, steps_per_epoch=1, epochs=5), []
    for count in (2, 2 + rank, 2):
        w.grad = torch.ones(2)
        indices = torch.arange(count) + 2 * rank
        said.append(refusal(lambda of=indices: optimizer.step(loss=torch.ones(len(of)), indices=of)))
    return [*said, int(optimizer.param_groups[0]["steps"])]


def checks(rank: int, mesh: DeviceMesh) -> dict[str, Any]:
    """Run all of them."""
    found: dict[str, Any] = {}
    for method in METHODS:
        found[f"replicated {method.name}"] = replicated(method, rank)
        found[f"sharded {method.name}"] = sharded(method, rank, mesh)
    for first in (0, 3):
        found[f"bound on one, step {first}"] = a_bound_on_one_process(rank, first)
    for kind in RADII:
        found[f"ball {kind}"] = a_relative_ball(kind, rank)
    found["unequal batches"] = unequal_batches(rank)
    found["without parameters"] = a_process_without_parameters(rank)
    return found


RADII = ("all", "group", "clipped", "FSDP2", "replaced")
