"""What each option may be, as data: checked for every parameter group, and said in one sentence when it is not so."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._backend.chunks import INTERPRETED
from .._backend.cpu_build import REALS, kernels


class Allowed(NamedTuple):
    """The values an option may take: a test, and the same in words."""

    test: Callable[[Any], bool]
    words: str


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _number(test: Callable[[Any], bool], words: str) -> Allowed:
    return Allowed(lambda value: _is_number(value) and test(value), words)


def _is_positive(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1 and (value.is_meta or bool(value > 0))
    return _is_number(value) and value > 0


_flag = Allowed(lambda value: isinstance(value, bool), "True or False")

ALLOWED: dict[str, Allowed] = {
    "lr": Allowed(_is_positive, "a number > 0 or a tensor of one such number (math.inf for no cap)"),
    "momentum": _number(lambda value: 0 <= value < 1, "a number in [0, 1)"),
    "adjusted_momentum": _flag,
    "float32_momentum": _flag,
    "eps": _number(lambda value: 0 <= value < math.inf, "a finite number ≥ 0"),
    "c": _number(lambda value: 0 < value < math.inf, "a finite number > 0"),
    "gamma": _number(lambda value: 1 <= value < math.inf, "a finite number ≥ 1, the growth of the cap per epoch"),
    "init_step_size": _number(lambda value: value > 0, "a number > 0"),
    "steps_per_epoch": _number(lambda value: 1 <= value < math.inf, "a number ≥ 1, usually len(data_loader)"),
    "lower_bound": _number(math.isfinite, "a finite number"),
    "foreach": Allowed(lambda value: value is None or isinstance(value, bool), "None, True or False"),
    "fused": Allowed(lambda value: value is None or isinstance(value, bool), "None, True or False"),
}

INSTEAD: dict[str, str] = {
    "weight_decay": "regularise with constraint=polyak.L2Ball(radius), since the loss has to be ≈ 0 at the optimum",
    "maximize": "minimise the negated objective and give its lower_bound",
    "max_lr": "the cap is called lr, so that every scheduler finds it",
    "eta_max": "the cap is called lr, so that every scheduler finds it",
    "nesterov": "momentum=0.9 is already Nesterov's",
    "projection_fn": "pass constraint=polyak.L2Ball(radius)",
    "differentiable": "unroll with torch.func on the update formula",
    "capturable": "every step is capturable, it never reads the device",
}

# Keys that torch, its schedulers and Trainer classes put into a group.
FOREIGN = frozenset({"params", "param_names", "initial_lr", "constraint"})


TYPES = frozenset({torch.float64, torch.float32, torch.bfloat16, torch.float16})
KERNELS = frozenset({"cpu", "cuda", "meta"})  # devices on which fused=True runs


def check(owner: str, group: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Raise ValueError unless every key of the group is an option, or torch's own, and every value allowed."""
    for name, value in group.items():
        if name in options:
            check_value(owner, name, value)
        elif not (name in FOREIGN or (name == "weight_decay" and not isinstance(value, Tensor) and value == 0)):
            raise ValueError(unknown(owner, name, options))
    both = {**options, **group}
    if both.get("fused") and both.get("foreach"):
        raise ValueError(f"{owner}: fused=True and foreach=True are two ways to move the parameters: choose one.")


def check_value(owner: str, name: str, value: Any) -> None:
    """Raise ValueError unless the option may have this value."""
    allowed = ALLOWED.get(name)
    if allowed is not None and not allowed.test(value):
        raise ValueError(f"{owner}: {name}={_said(value)} is not allowed, it must be {allowed.words}.")


def check_cap(owner: str, lr: Tensor | float) -> None:
    """Raise ValueError if a schedule has made the cap NaN or negative; a tensor is left to the device."""
    if not isinstance(lr, Tensor) and not lr >= 0:
        raise ValueError(
            f"{owner}: lr={lr!r} is no cap on a step size: a schedule needs a finite lr > 0 to start from."
        )


def check_params(owner: str, params: Iterable[Tensor], fused: bool | None) -> None:
    """Raise TypeError unless all parameters can be moved, ValueError or RuntimeError unless as it is asked."""
    for p in params:
        if p.dtype.to_real() not in TYPES:
            raise TypeError(f"{owner} moves floating-point and complex parameters: leave the {p.dtype} tensor out.")
        if fused and p.device.type not in KERNELS:
            raise ValueError(f"{owner}: fused=True has no kernel for the device {p.device}: leave it out.")
        if fused and p.is_cpu and not INTERPRETED and p.dtype in REALS:
            kernels(p.dtype)


def unknown(owner: str, name: str, options: Mapping[str, Any]) -> str:
    """Say that an option does not exist, and which one was probably meant."""
    close = difflib.get_close_matches(name, options, n=1)
    hint = INSTEAD.get(name) or (f"did you mean {close[0]}?" if close else f"there are {', '.join(sorted(options))}")
    return f"{owner} has no option {name!r}: {hint.rstrip('?.')}{'?' if hint.endswith('?') else '.'}"


def check_names(cls: type[Any], given: Mapping[str, Any]) -> None:
    """Raise TypeError when a constructor is called with an option it does not have."""
    parameters = dict(inspect.signature(cls.__init__).parameters)
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    for name in given:
        if name not in parameters:
            raise TypeError(unknown(cls.__name__, name, {k: None for k in parameters if k not in ("self", "params")}))


def check_dense(grad: Tensor) -> None:
    """Raise RuntimeError for a sparse gradient."""
    if grad.layout != torch.strided:
        raise RuntimeError(
            f"A gradient of shape {tuple(grad.shape)} is sparse, but a Polyak step needs dense ones: "
            "build the layer with sparse=False."
        )


def check_constraint(owner: str, constraint: Any) -> Any:
    """Return the constraint; raise TypeError unless it is one."""
    if isinstance(constraint, type) or not (constraint is None or callable(getattr(constraint, "project_", None))):
        given = f"the class {constraint.__name__}" if isinstance(constraint, type) else f"a {type(constraint).__name__}"
        raise TypeError(f"{owner}: constraint is {given}, but must be an object such as polyak.L2Ball(100.0), or None.")
    return constraint


def _said(value: Any) -> str:
    return (
        f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) and value.numel() != 1 else repr(value)
    )
