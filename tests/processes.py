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
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import polyak
import polyak._step.optimizer as optimizer_module
import sharing
from catalogue import METHODS
from messages import MESSAGES, SHAPES, sent
from problem import Problem, flat

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
SEVERAL = (("DDP", "each", 3), ("DDP", "all", 1), ("FSDP2", "each", 1), ("FSDP2", "all", 3))
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


def refusal(make: Callable[[], Any]) -> str:
    """Return what is said, or "no error"."""
    try:
        make()
    except (RuntimeError, ValueError) as error:
        return str(error)
    return "no error"


def zero(constraint: polyak.Constraint, *, where: str, alone: bool = False) -> list[float]:
    """Step under ZeroRedundancyOptimizer, with a constraint given to the optimizer, to a group, or later."""
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(4)) for _ in range(SIZE)]
    with torch.no_grad():
        constraint.project_(params)
    own = [dist.new_group([rank]) for rank in range(SIZE)][dist.get_rank()] if alone else None
    options: dict[str, Any] = {"constraint": constraint} if where == "optimizer" else {}
    groups = [{"params": params, **({"constraint": constraint} if where == "group" else {})}]
    optimizer = ZeroRedundancyOptimizer(groups, polyak.ALIG, own, lr=0.1, **options)
    if where == "later":
        optimizer.param_groups[0]["constraint"] = constraint
    if where == "another group":
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(4))], "constraint": constraint})
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step(loss=1.0, grad_sq_norm=8.0)
    return torch.cat(params).tolist()


def stages(*constraints: polyak.Constraint | None, start: float = 1.0) -> float:
    """Train a stage per process, each with a constraint of its own or without one, with the norm of all of them."""
    rank = dist.get_rank()
    w = nn.Parameter(torch.full((4,), start * (1 + rank)))
    optimizer = polyak.ALIG([w], lr=0.1, constraint=constraints[rank])
    for _ in range(3):
        w.grad = torch.full((4,), 1.0 + rank)
        optimizer.step(loss=1.0, grad_sq_norm=20.0)
    return float(w.norm())


def clipped_replicas() -> float:
    """Train replicas in a ball with clipped gradients and the norm from before the clip."""
    w = nn.Parameter(torch.ones(4))
    optimizer = polyak.ALIG([w], lr=0.1, constraint=polyak.L2Ball(1.0))
    for _ in range(11):
        w.grad = torch.full((4,), -0.1)
        optimizer.step(loss=1.0, grad_sq_norm=16.0)
    return float(w.norm())


def constraints_on_parts() -> dict[str, Any]:
    """What becomes of constraints where each process holds a part of the parameters."""
    ball, box = polyak.L2Ball(1.0), polyak.Box(-0.5, 0.5)
    places = ("optimizer", "group", "later", "another group")
    found: dict[str, Any] = {f"ball, {where}": refusal(lambda where=where: zero(ball, where=where)) for where in places}
    found |= {f"box, {where}": zero(box, where=where) for where in places}
    found["ball, one process"] = zero(ball, where="optimizer", alone=True)
    for name, pair in {"ball": (ball, ball), "first": (ball, None), "second": (None, ball)}.items():
        found[f"stages, {name}"] = refusal(lambda pair=pair: stages(*pair))
    found["stages, equal at first"] = refusal(lambda: stages(None, polyak.L1Ball(1.0), start=0.0))
    found["stages, allowed"] = [refusal(lambda: stages(None, None)), refusal(lambda: stages(box, None))]
    found["clipped replicas"] = clipped_replicas()
    return found


def several_optimizers(kind: str, order: str, accumulate: int) -> float:
    """Let each of two optimizers watch each of two losses; return the largest relative error of a loss in a step."""
    torch.manual_seed(0)
    nets: list[Any] = [nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)) for _ in range(2)]
    for i, net in enumerate(nets):
        if kind == "DDP":
            nets[i] = nn.parallel.DistributedDataParallel(net)
        else:
            fully_shard(net[0])
            fully_shard(net)
    optimizers = [polyak.ALIG(net.parameters(), lr=1e-3, lower_bound=-1.0) for net in nets]
    x, worst = torch.randn(6, 4, generator=torch.Generator().manual_seed(dist.get_rank())), 0.0
    for _ in range(3):
        means = []
        for i, net in enumerate(nets):
            optimizers[i].zero_grad()
            total = torch.zeros(())
            for part in range(accumulate):
                if kind == "FSDP2":
                    net.set_requires_gradient_sync(part == accumulate - 1)
                loss = (i + part + 1.0) * (net(x) - 1.0).square().mean()
                for optimizer in optimizers:
                    optimizer.watch(loss)
                (loss / accumulate).backward()
                total += loss.detach() / accumulate
            dist.all_reduce(total)
            means.append(float(total) / SIZE)
            if order == "each":
                optimizers[i].step()
        for optimizer, mean in zip(optimizers, means, strict=True):
            if order == "all":
                optimizer.step()
            worst = max(worst, abs(float(optimizer.last_step().loss) / mean - 1.0))
    return worst


def disagreement() -> str:
    """Processes that hold different parameters and know no common norm."""
    optimizer = polyak.ALIG([nn.Parameter(torch.ones(2 + dist.get_rank()))])
    optimizer.param_groups[0]["params"][0].grad = torch.ones(2 + dist.get_rank())
    try:
        optimizer.step(loss=1.0)
    except RuntimeError as error:
        return str(error)
    return "no error"


def zero_of_equal_shards() -> str:
    """Step under ZeroRedundancyOptimizer without the norm, where no number tells one shard from another."""
    params = [nn.Parameter(torch.ones(4)) for _ in range(SIZE)]
    optimizer = ZeroRedundancyOptimizer(params, polyak.ALIG, lr=0.1)
    for p in params:
        p.grad = torch.ones_like(p)
    return refusal(lambda: optimizer.step(loss=1.0))


def drift_of_one_number() -> list[Any]:
    """Train a model per process, of which only one number moves; return the step that was refused, and why."""
    w = nn.Parameter(torch.ones(8))
    optimizer = polyak.ALIG([w], lr=0.1)
    for t in range(3):
        w.grad = torch.zeros(8).index_fill(0, torch.tensor(1 + dist.get_rank()), 1.0 + dist.get_rank())
        if sentence := refusal(lambda: optimizer.step(loss=1.0)).removesuffix("no error"):
            return [t, sentence]
    return [3, ""]


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


def what_overlaps() -> list[bool]:
    """Whether the mean loss had been waited for when ‖g‖² was measured, and when γ was decided."""
    means: list[Any] = []
    waited: list[bool] = []
    average, measure, decide = optimizer_module.Processes.average, optimizer_module.sum_squares, polyak.ALIG.step_size

    def noting(function: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any) -> Any:
            waited.append(bool(means[-1].completed))
            return function(*args)

        return noted

    w = nn.Parameter(torch.zeros(3))
    optimizer = polyak.ALIG([w])
    w.grad = torch.ones(3)
    optimizer_module.Processes.average = lambda self, value: means.append(average(self, value)) or means[-1]
    optimizer_module.sum_squares, polyak.ALIG.step_size = noting(measure), noting(decide)
    try:
        optimizer.step(loss=1.0 + dist.get_rank())
    finally:
        optimizer_module.Processes.average, optimizer_module.sum_squares = average, measure
        polyak.ALIG.step_size = decide
    return waited


def build(name: str, form: str, constraint: str, params: list[Tensor], **options: Any) -> polyak.PolyakOptimizer:
    """Return a method whose step size always follows the loss."""
    method = next(method for method in METHODS if method.name == name)
    size = sum(p.numel() for p in params)
    return method.build(
        params, form, lr=1.0 if method.factor else math.inf, constraint=SETS[constraint](size), **options
    )


def rows() -> list[tuple[str, str, str]]:
    """Every form of a few methods without a constraint, and every constraint with the first."""
    quick = ("ALIG", "SPS", "SmoothSPS", "MoMoAdam")  # `make test-distributed` runs every method
    forms = [(method.name, form, "none") for method in METHODS for form in method.momenta if method.name in quick]
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
    found["equal shards"] = zero_of_equal_shards()
    found["drift of one number"] = drift_of_one_number()
    found["model per process"] = model_per_process(12)
    found["model per process, told so"] = model_per_process(12, sync_loss=False)
    for cell in SEVERAL:
        found[f"several {cell}"] = several_optimizers(*cell)
    found["constraints on parts"] = constraints_on_parts()
    for context in ("first epoch", "second epoch", "Join"):
        found[f"join {context}"] = joined(context)
    found["groups of one"] = two_groups_of_one()
    found["overlap"] = what_overlaps()
    found["shared"] = sharing.checks(rank, mesh)
    found["messages"] = {f"{name} {form}": sent(name, form, mesh) for name, form in MESSAGES}
    ball = polyak.L2Ball(1.0)
    found["with a ball"] = {f"{name} {form}": sent(name, form, mesh, ball) for name, form in MESSAGES}
    (folder / f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
