"""What processes share beside the loss, for `processes.py`: bounds of calls, radii, and the type of a message."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

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


def micro_batches_of_heads(mesh: DeviceMesh) -> list[float]:
    """Watch a loss of each of two heads in tensor parallel; return the mean loss, and what the step saw."""
    torch.manual_seed(0)
    x, heads = torch.randn(6, 8), nn.ModuleList(nn.Linear(8, 4) for _ in range(2))
    for head in heads:
        parallelize_module(head, mesh, ColwiseParallel(output_layouts=Replicate()))
    optimizer, losses = polyak.ALIG(heads.parameters(), lr=0.1), []
    for head in heads:
        losses.append(optimizer.watch(head(x).square().mean()))
        (losses[-1] / 2).backward()
    optimizer.step()
    return [float(sum(losses).detach()) / 2, float(optimizer.last_step().loss)]


class Heads(nn.Module):
    """A network with two heads, of which a batch takes one."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.heads = nn.Linear(4, 8), nn.ModuleList(nn.Linear(8, 3) for _ in range(2))

    def forward(self, x: Tensor, head: int) -> Tensor:
        return self.heads[head](self.body(x))


def a_gradient_that_another_pass_reduces(kind: str) -> list[float]:
    """Give a head an optimizer of its own; its gradient is averaged at the end of a pass that does not reach it."""
    torch.manual_seed(0)
    net: Any = Heads()
    weight = net.heads[0].weight
    if kind == "FSDP2":
        fully_shard(net)
        weight = net.heads[0].weight
    model = net if kind == "FSDP2" else nn.parallel.DistributedDataParallel(net, find_unused_parameters=True)
    optimizer, reached = polyak.ALIG([weight], lr=0.1), torch.zeros(())
    for i, head in enumerate((1, 0, 1)):
        if kind == "FSDP2":
            net.set_requires_gradient_sync(i == 2)
        with contextlib.nullcontext() if kind == "FSDP2" or i == 2 else model.no_sync():
            loss = optimizer.watch(model(torch.ones(2, 4), head).square().mean())
            (loss / 3).backward()
        reached += (loss.detach() / 3) * (head == 0)
    optimizer.step()
    return [float(reached), float(optimizer.last_step().loss)]


def a_skipped_step(wrap: Callable[[nn.Module], nn.Module]) -> list[float]:
    """Let a GradScaler skip the first of two steps; return the loss of the second, and what the step saw."""
    torch.manual_seed(0)
    net = wrap(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)))
    optimizer = polyak.ALIG(net.parameters(), lr=1e-6)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-117)
    for _ in range(2):
        net.zero_grad()
        loss = optimizer.watch((100 * net(torch.ones(2, 4))).square().mean(), scaler)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    return [float(loss.detach()), float(optimizer.last_step().loss)]


def forward_passes_alone(name: str, forward: bool) -> list[float]:
    """Move shards outside of steps, by eval() and train() or by a projection, with or without a forward pass before."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    fully_shard(net)
    params, losses = [*net.parameters()], []
    x = torch.randn(8, 4, dtype=torch.float64)

    def look() -> None:
        if forward:
            with torch.no_grad():
                net(x)

    method = next(method for method in METHODS if method.name == name)
    look()
    optimizer = method.build(params, "averaged", lr=0.5, constraint=polyak.L2Ball(1.0))
    for _ in range(3):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), torch.arange(8) % 3)
        loss.backward()
        optimizer.step(loss=loss)
        losses.append(loss.item())
        optimizer.eval()
        look()
        optimizer.train()
    return losses


def partial_numbers(door: str, mesh: DeviceMesh) -> list[float]:
    """Give a loss of 5, its bound of 1 and ‖g‖² = 4 as sums of two parts; return loss and γ that were seen."""
    part = [2.0, 3.0][dist.get_rank()], [0.25, 0.75][dist.get_rank()], [3.0, 1.0][dist.get_rank()]
    loss, bound, norm = (DTensor.from_local(torch.tensor(x), mesh, [Partial()]) for x in part)
    w = nn.Parameter(distribute_tensor(torch.ones(4), mesh, [Shard(0)]))
    w.grad = torch.ones_like(w)
    if door == "samples":
        optimizer: polyak.PolyakOptimizer = polyak.ALIGPlus([w], samples=2, steps_per_epoch=1, epochs=5, lr=math.inf)
        optimizer.step(loss=torch.stack([loss, loss]), indices=[0, 1])
    else:
        optimizer = polyak.ALIG([w], lr=math.inf, eps=0.0)
        given = {"loss": loss} if door == "loss" else {"closure": lambda: loss}
        optimizer.step(**given, lower_bound=bound, grad_sq_norm=norm)
    return [float(optimizer.last_step().loss), float(optimizer.last_step().step_size)]


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
    found["heads"] = micro_batches_of_heads(mesh)
    for wrap in (nn.parallel.DistributedDataParallel, fully_shard):
        found[f"skipped {wrap.__name__}"] = a_skipped_step(wrap)
    for method in METHODS:
        if hasattr(method.cls, "eval"):
            passes = [forward_passes_alone(method.name, forward) for forward in (False, True)]
            found[f"forward passes {method.name}"] = passes
    for kind in ("DDP", "FSDP2"):
        found[f"reduced later {kind}"] = a_gradient_that_another_pass_reduces(kind)
    for door in ("loss", "closure", "samples"):
        found[f"partial {door}"] = partial_numbers(door, mesh)
    found["unequal batches"] = unequal_batches(rank)
    found["without parameters"] = a_process_without_parameters(rank)
    return found


RADII = ("all", "group", "clipped", "FSDP2", "replaced")
