"""Optimizers by name, and the only place that depends on which of them take the loss."""

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
)

import polyak
from polyak_lab.config import run as config
from polyak_lab.config.strict import (
    LARGEST_FLOAT32,
    check_known,
    is_float32,
    is_int64,
    is_number,
    shown,
)
from polyak_lab.errors import LabError

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "alig": polyak.ALIG,
    "sps": polyak.SPS,
    "smooth-sps": polyak.SmoothSPS,
    "momo": polyak.MoMo,
    "momo-adam": polyak.MoMoAdam,
    "ngn": polyak.NGN,
    "ngn-md": polyak.NGNMD,
    "mom-sps": polyak.MomSPS,
    "smooth-mom-sps": polyak.SmoothMomSPS,
    "safe-sps": polyak.SafeSPS,
    "dec-sps": polyak.DecSPS,
    "ada-sps": polyak.AdaSPS,
    "iam": polyak.IAM,
    "iam-adam": polyak.IAMAdam,
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}
NONE = "none"  # how a recipe writes None, for which TOML has no value
# The model, `l2_ball` and the launcher give them.
_NOT_OPTIONS = {"params", "constraint", "sync_loss", "process_group"}


class StepInfo(NamedTuple):
    """One step: numbers for torch's optimizers, device tensors for loss-based ones."""

    step_size: float | Tensor
    capped: Tensor | None = None
    skipped: Tensor | None = None


def resolve(choice: config.Optimizer) -> config.Optimizer:
    """Fill in every option with the defaults of its class, and refuse unknown ones."""
    check_known(choice.name, OPTIMIZERS, "optimizer")
    parameters = inspect.signature(OPTIMIZERS[choice.name]).parameters
    known = [name for name in parameters if name not in _NOT_OPTIONS]
    for key in choice.options:
        check_known(key, [*known, *(config.BALLS if "constraint" in parameters else ())], f"optimizer {choice.name}")
    _check_ball(choice, "constraint" in parameters)
    options = {key: None if value == NONE else value for key, value in choice.options.items()}
    given = {name: options.get(name, parameters[name].default) for name in known}
    spelled = {name: value for name, value in given.items() if value is not inspect.Parameter.empty}
    resolved = replace(choice, options=spelled)
    for name, value in spelled.items():
        _check_option(choice.name, name, value, parameters[name].default)
    _try_out(resolved)
    return resolved


def _check_ball(choice: config.Optimizer, takes_constraint: bool) -> None:
    """Refuse a ball that cannot be, that the class does not take, or that is given twice."""
    given = {name: value for name in config.BALLS if (value := getattr(choice, name)) is not None}
    for name, value in given.items():
        if not takes_constraint:
            raise LabError(f"The optimizer {choice.name} takes no constraint: leave {name} out.")
        _check_size(choice.name, name, [value])
    if len(given) > 1:
        raise LabError(f"optimizer {choice.name}: l2_ball and l2_ball_relative are one radius: write one of them.")


def _check_option(optimizer: str, name: str, value: Any, default: Any) -> None:
    """Refuse numbers beyond float32, and values that torch's optimizers reject only in a step."""
    numbers = list(value) if isinstance(value, (list, tuple)) else [value]
    _check_size(optimizer, name, numbers)
    if issubclass(OPTIMIZERS[optimizer], polyak.PolyakOptimizer):
        return
    if isinstance(default, tuple):
        fits = len(numbers) == len(default) and all(map(is_number, numbers))
        wanted = f"{len(default)} numbers, such as {list(default)}"
    elif is_number(default):
        fits, wanted = is_number(value), f"a number, such as {default:g}"
    else:
        fits, wanted = isinstance(value, bool) or value is default, "true or false"
    if not fits:
        raise LabError(f"optimizer {optimizer}: {name} is {shown(value)}, but must be {wanted}.")


def _check_size(optimizer: str, name: str, numbers: Sequence[Any]) -> None:
    for number in filter(is_number, numbers):
        if not is_float32(number):
            raise LabError(
                f"optimizer {optimizer}: {name} is {shown(number)}, but float32 ends at {LARGEST_FLOAT32:g}."
            )
        if isinstance(number, int) and not is_int64(number):
            raise LabError(f"optimizer {optimizer}: {name} is {shown(number)}, but must be less than 2**63.")


def _try_out(choice: config.Optimizer) -> None:
    """Build the optimizer; test torch's own with a step, where some options fail."""
    weight = torch.zeros(1, requires_grad=True)
    if choice.l2_ball_relative is not None:
        torch.nn.init.ones_(weight)  # it is a multiple of their norm
    optimizer = build(choice, [weight], steps_per_epoch=1)
    if isinstance(optimizer, polyak.PolyakOptimizer) or choice.options.get("capturable"):
        return
    weight.grad = torch.zeros(1)
    try:
        optimizer.step()
    except Exception as error:
        raise LabError(f"optimizer {choice.name}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    line = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
    return f"{line[:200]}."


def build(
    choice: config.Optimizer,
    parameters: Iterable[Tensor],
    steps_per_epoch: int,
) -> torch.optim.Optimizer:
    """Make the optimizer; one that counts epochs learns their length unless the row says it."""
    cls = OPTIMIZERS[choice.name]
    options: dict[str, Any] = dict(choice.options)
    if "steps_per_epoch" in inspect.signature(cls).parameters:
        options.setdefault("steps_per_epoch", steps_per_epoch)
    try:
        if ball := _ball(choice):
            options["constraint"] = ball
        return cls(parameters, **options)
    except LabError:
        raise
    except Exception as error:  # of any kind, such as IndexError for one beta
        raise LabError(f"optimizer {choice.name}: {_first_line(error)}") from error


def _ball(choice: config.Optimizer) -> polyak.L2Ball | None:
    """Make the ball that the weights stay in; None if there is none."""
    name = "l2_ball" if choice.l2_ball_relative is None else "l2_ball_relative"
    try:
        if choice.l2_ball_relative is not None:
            return polyak.L2Ball(relative=choice.l2_ball_relative)
        return None if choice.l2_ball is None else polyak.L2Ball(choice.l2_ball)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def keep_lr_on_device(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Let a schedule write lr where a replayed step reads it."""
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(group["lr"], dtype=torch.float64, device=device)


def take_step(
    optimizer: torch.optim.Optimizer,
    loss: Tensor,
    grad_sq_norm: Tensor | None = None,
) -> StepInfo:
    """Take one step and report it; `grad_sq_norm` is ‖g‖² from before the gradient was clipped."""
    if isinstance(optimizer, polyak.PolyakOptimizer):
        optimizer.step(loss=loss, grad_sq_norm=grad_sq_norm)
        last = optimizer.last_step()
        return StepInfo(last.step_size, last.capped, last.skipped)
    step_size = optimizer.param_groups[0]["lr"]
    optimizer.step()
    return StepInfo(step_size)


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


def _cosine(
    _: config.Schedule,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    steps: int,
) -> LRScheduler:
    return CosineAnnealingLR(optimizer, T_max=epochs * steps)


def _step(
    choice: config.Schedule,
    optimizer: torch.optim.Optimizer,
    _: int,
    steps: int,
) -> LRScheduler:
    return MultiStepLR(optimizer, [epoch * steps for epoch in choice.milestones], choice.multiplier)


SCHEDULES: dict[str, Callable[..., LRScheduler | None]] = {
    "constant": _constant,
    "cosine": _cosine,
    "step": _step,
}
