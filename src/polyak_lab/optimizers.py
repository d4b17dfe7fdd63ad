"""Optimizers by name, and the one place that knows which of them take the loss."""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.lr_scheduler import ChainedScheduler, CosineAnnealingLR, LinearLR, LRScheduler, MultiStepLR

import polyak
from polyak_lab.config import run as config
from polyak_lab.config.strict import check_known
from polyak_lab.errors import LabError

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "alig": polyak.ALIG,
    "sps": polyak.SPS,
    "smooth-sps": polyak.SmoothSPS,
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}
_NOT_OPTIONS = {"params", "constraint", "sync_loss", "process_group"}  # the model, `l2_ball` and the launcher give them


class Observed(NamedTuple):
    """What one step did: numbers for torch's optimizers, tensors on the device for those that read the loss."""

    step_size: float | Tensor
    capped: Tensor | None = None
    skipped: Tensor | None = None


def resolve(choice: config.Optimizer) -> config.Optimizer:
    """Spell out every option, defaults of the class included, and refuse what the class does not take."""
    check_known(choice.name, OPTIMIZERS, "optimizer")
    parameters = inspect.signature(OPTIMIZERS[choice.name]).parameters
    known = [name for name in parameters if name not in _NOT_OPTIONS]
    for key in choice.options:
        check_known(key, known, f"optimizer {choice.name}")
    if choice.l2_ball is not None and "constraint" not in parameters:
        raise LabError(f"The optimizer {choice.name} takes no constraint: leave l2_ball out.")
    given = {name: choice.options.get(name, parameters[name].default) for name in known}
    spelled = {name: value for name, value in given.items() if value is not inspect.Parameter.empty}
    resolved = replace(choice, options=spelled)
    build(resolved, [torch.zeros(1, requires_grad=True)], steps_per_epoch=1)  # wrong values are refused here
    return resolved


def build(choice: config.Optimizer, parameters: Iterable[Tensor], steps_per_epoch: int) -> torch.optim.Optimizer:
    """Make the optimizer; one that counts epochs learns their length unless the row says it."""
    cls = OPTIMIZERS[choice.name]
    options: dict[str, Any] = dict(choice.options)
    if "steps_per_epoch" in inspect.signature(cls).parameters:
        options.setdefault("steps_per_epoch", steps_per_epoch)
    try:
        if choice.l2_ball is not None:
            options["constraint"] = polyak.L2Ball(choice.l2_ball)
        return cls(parameters, **options)
    except (TypeError, ValueError) as error:
        raise LabError(f"optimizer {choice.name}: {error}") from error


def keep_lr_on_device(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Let a schedule write lr where a replayed step reads it."""
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(group["lr"], dtype=torch.float64, device=device)


def advance(optimizer: torch.optim.Optimizer, loss: Tensor, grad_sq_norm: Tensor | None = None) -> Observed:
    """Take one step and report it; `grad_sq_norm` is ‖g‖² from before the gradient was clipped."""
    if isinstance(optimizer, polyak.PolyakOptimizer):
        optimizer.step(loss=loss, grad_sq_norm=grad_sq_norm)
        last = optimizer.last_step()
        return Observed(last.step_size, last.capped, last.skipped)
    step_size = optimizer.param_groups[0]["lr"]
    optimizer.step()
    return Observed(step_size)


def build_schedule(
    choice: config.Schedule, optimizer: torch.optim.Optimizer, epochs: int, steps_per_epoch: int
) -> LRScheduler | None:
    """Make the schedule of `lr`, counted in steps; None where it is constant."""
    schedule = SCHEDULES[choice.name](choice, optimizer, epochs, steps_per_epoch)
    if choice.warmup_steps < 2:
        return schedule
    rise = LinearLR(optimizer, 1 / choice.warmup_steps, total_iters=choice.warmup_steps - 1)
    return rise if schedule is None else ChainedScheduler([schedule, rise])


def _constant(*_: object) -> None:
    return None


def _cosine(_: config.Schedule, optimizer: torch.optim.Optimizer, epochs: int, steps: int) -> LRScheduler:
    return CosineAnnealingLR(optimizer, T_max=epochs * steps)


def _step(choice: config.Schedule, optimizer: torch.optim.Optimizer, _: int, steps: int) -> LRScheduler:
    return MultiStepLR(optimizer, [epoch * steps for epoch in choice.milestones], choice.factor)


SCHEDULES: dict[str, Callable[..., LRScheduler | None]] = {
    "constant": _constant,
    "cosine": _cosine,
    "step": _step,
}
