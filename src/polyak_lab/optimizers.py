"""Optimizers by name, and the only place that depends on which of them take the loss."""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

import polyak
from polyak._metrics import gradient_norm
from polyak_lab import imports
from polyak_lab.config import run as config
from polyak_lab.config.names import method_name
from polyak_lab.config.strict import (
    LARGEST_FLOAT32,
    check_known,
    is_float32,
    is_number,
    near_miss,
    require_storable,
    shown,
)
from polyak_lab.errors import LabError, RowError, first_line, typed_line

_PUBLIC: tuple[Any, ...] = tuple(getattr(polyak, name) for name in polyak.__all__)
METHODS: dict[str, type[polyak.PolyakOptimizer]] = {
    method_name(cls.__module__): cls for cls in _PUBLIC if cls.__module__.startswith("polyak.methods.")
}
"""The library's methods by the names of their files: `momo-adam` is the class of `methods/momo_adam.py`."""
OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    **METHODS,
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}
# The model, `l2_ball` and the launcher give them.
_NOT_OPTIONS = {"params", "constraint", "sync_loss", "process_group"}
StepForm = Literal["plain", "loss", "closure"]
"""How an optimizer steps: `step()`, `step(loss=loss)`, or `step(closure)`."""


class StepInfo(NamedTuple):
    """One step: numbers for torch's optimizers, device tensors for loss-based ones."""

    step_size: float | Tensor
    capped: Tensor | None = None
    skipped: Tensor | None = None
    gradient_norm: Tensor | None = None


def resolve(choice: config.Optimizer) -> config.Optimizer:
    """Fill in every option with the defaults of its class; errors of the user's own class are RowErrors."""
    choice = _with_path(choice)
    if reads_loss(choice.name, polyak.ALIGPlus):
        raise LabError(
            f"optimizer {choice.name} learns a target for every sample, but batches have no indices: use alig."
        )
    with imports.row_errors(choice.name):
        parameters = _parameters(choice.name)
        known = [name for name in parameters if name not in _NOT_OPTIONS]
        _check_keys(choice, known, "constraint" in parameters)
        _check_ball(choice, "constraint" in parameters)
        options = {key: None if value == config.NONE else value for key, value in choice.options.items()}
        given = {name: options.get(name, parameters[name].default) for name in known}
        spelled = {name: value for name, value in given.items() if name in options or _is_stated(choice, value)}
        resolved = replace(choice, options=spelled | options)
        for name, value in resolved.options.items():
            _check_option(choice.name, name, value, parameters[name].default if name in parameters else None)
        require_storable(resolved.options, f"optimizer {choice.name}")
        _try_out(resolved)
    return resolved


def optimizer_class(name: str) -> Callable[..., torch.optim.Optimizer]:
    """Return the class of a name or of an import path."""
    if not imports.is_path(name):
        return OPTIMIZERS[name]
    found: Callable[..., torch.optim.Optimizer] = imports.load(name, "optimizer")
    if not callable(found):
        raise RowError(f"optimizer {name!r} is no class of an optimizer.")
    return found


def reads_loss(name: str, kind: type[polyak.PolyakOptimizer] = polyak.PolyakOptimizer) -> bool:
    """Tell whether an optimizer is one of this library's kind, or of one class of it."""
    cls = optimizer_class(name)
    return isinstance(cls, type) and issubclass(cls, kind)


def _with_path(choice: config.Optimizer) -> config.Optimizer:
    """Check the name; record the import path of a class that is not built in, and the version of its package."""
    path = imports.expand(choice.name, "optimizer", OPTIMIZERS)
    if imports.is_path(path):
        optimizer_class(path)
        return replace(choice, name=path, version=imports.version(path, choice.version))
    if choice.version:
        raise LabError(f"optimizer {path!r} takes no version: leave it out.")
    return choice


def _parameters(name: str) -> Mapping[str, inspect.Parameter]:
    """Return the named parameters of a class."""
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = imports.parameters_of(optimizer_class(name))
    return {key: value for key, value in parameters.items() if value.kind not in variadic}


def _check_keys(choice: config.Optimizer, known: Sequence[str], takes_constraint: bool) -> None:
    """Refuse unknown options; a class with **kwargs takes all but misspellings of what it names."""
    where = f"optimizer {choice.name}"
    known = [*known, *(config.BALLS if takes_constraint else ())]
    takes_any = imports.takes_any_keyword(imports.parameters_of(optimizer_class(choice.name)))
    for key in choice.options:
        if not takes_any or near_miss(key, known):
            check_known(key, known, where)


def _is_stated(choice: config.Optimizer, value: Any) -> bool:
    """Tell whether a default is written into the configuration: in JSON, objects of other packages have no form."""
    if value is inspect.Parameter.empty:
        return False
    plain = (bool, int, float, str, type(None))
    parts = value if isinstance(value, (list, tuple)) else [value]
    return not imports.is_path(choice.name) or all(isinstance(part, plain) for part in parts)


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
    if imports.is_path(optimizer) or reads_loss(optimizer):
        return
    if isinstance(default, tuple):
        fits = len(numbers) == len(default) and all(map(is_number, numbers))
        wanted = f"{len(default)} numbers, such as {list(default)}"
    elif is_number(default):
        fits, wanted = is_number(value) and math.isfinite(value), f"a finite number, such as {default:g}"
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


def _try_out(choice: config.Optimizer) -> None:
    """Build the optimizer; test one that is not this library's with a step, where some options fail."""
    if not reads_loss(choice.name) and not choice.options.get("capturable"):
        step_form(choice)
        return
    _on_trial(choice)


def step_form(choice: config.Optimizer) -> StepForm:
    """Find out by a step on a weight of its own whether an optimizer needs a closure."""
    if reads_loss(choice.name, polyak.SAMSPS):
        return "closure"
    if reads_loss(choice.name) or (not imports.is_path(choice.name) and choice.options.get("capturable")):
        return "plain"
    optimizer, weight = _on_trial(choice)
    step: Callable[..., object] = optimizer.step
    parameters = imports.parameters_of(step)
    if "loss" in parameters:
        return "loss"
    set_mode(optimizer, training=True)
    try:
        step()
    except Exception as error:
        if not imports.is_path(choice.name):
            raise LabError(f"optimizer {choice.name}: {first_line(error)}.") from error
        if "closure" not in parameters:
            raise _raised(choice.name, error) from error
        with imports.own_code(f"optimizer {choice.name!r}"):
            step(lambda: weight.detach().square().sum())
        return "closure"
    return "plain"


def _on_trial(choice: config.Optimizer) -> tuple[torch.optim.Optimizer, Tensor]:
    weight = torch.zeros(1, requires_grad=True)
    if choice.l2_ball_relative is not None:
        torch.nn.init.ones_(weight)  # it is a multiple of their norm
    weight.grad = torch.zeros(1)
    return build(choice, [weight], steps_per_epoch=1), weight


def _raised(name: str, error: Exception) -> RowError:
    return RowError(f"optimizer {name!r} raised {typed_line(error)}.", imports.own_traceback(error))


def build(
    choice: config.Optimizer,
    parameters: Iterable[Tensor],
    steps_per_epoch: int,
) -> torch.optim.Optimizer:
    """Make the optimizer; `steps_per_epoch` is filled in if the class has it and the row does not give it."""
    options: dict[str, Any] = dict(choice.options)
    if "steps_per_epoch" in _parameters(choice.name):
        options.setdefault("steps_per_epoch", steps_per_epoch)
    try:
        if ball := _ball(choice):
            options["constraint"] = ball
        made = optimizer_class(choice.name)(parameters, **options)
    except LabError:
        raise
    except Exception as error:  # of any kind, such as IndexError for one beta
        if imports.is_path(choice.name):
            raise _raised(choice.name, error) from error
        raise LabError(f"optimizer {choice.name}: {first_line(error)}.") from error
    if not isinstance(made, torch.optim.Optimizer):
        raise RowError(f"optimizer {choice.name!r} made {type(made).__name__}, not a torch.optim.Optimizer.")
    return made


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
    dtype = torch.float64 if isinstance(optimizer, polyak.PolyakOptimizer) else torch.float32  # as torch's kernels
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(group["lr"], dtype=dtype, device=device)


def set_mode(optimizer: torch.optim.Optimizer, *, training: bool) -> None:
    """Call `train()` or `eval()` of optimizers that evaluate other weights than they train, such as schedule-free."""
    mode = getattr(optimizer, "train" if training else "eval", None)
    if callable(mode):
        mode()


def take_step(
    optimizer: torch.optim.Optimizer,
    loss: Tensor,
    grad_sq_norm: Tensor | None = None,
    form: StepForm = "plain",
) -> StepInfo:
    """Take one step and report it; `grad_sq_norm` is ‖g‖² from before the gradient was clipped."""
    if isinstance(optimizer, polyak.PolyakOptimizer):
        optimizer.step(loss=loss, grad_sq_norm=grad_sq_norm)
        return info_of(optimizer)
    step_size = current_lr(optimizer)
    step: Callable[..., object] = optimizer.step
    step(**({"loss": loss} if form == "loss" else {}))
    return StepInfo(step_size, gradient_norm=None if grad_sq_norm is None else grad_sq_norm.sqrt())


def info_of(optimizer: polyak.PolyakOptimizer) -> StepInfo:
    """Return what a loss-based optimizer reports of its last step."""
    last = optimizer.last_step()
    return StepInfo(last.step_size, last.capped, last.skipped, gradient_norm(optimizer))


def current_lr(optimizer: torch.optim.Optimizer) -> float | Tensor:
    """Return the learning rate of the first group, NaN if it has none."""
    lr: float | Tensor = optimizer.param_groups[0].get("lr", math.nan)
    return lr.clone() if isinstance(lr, Tensor) else lr  # a schedule will write into it


def measured_radius(optimizer: torch.optim.Optimizer) -> float | None:
    """Return the radius that a relative ball has found from the initial weights, None without such a ball."""
    radius = optimizer.param_groups[0].get("l2_ball_radius")
    return None if radius is None else float(radius)
