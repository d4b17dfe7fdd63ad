"""What each option may be, as data: checked for every parameter group, and said in one sentence when it is not so."""

from __future__ import annotations

import difflib
import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor
from torch.nn import Parameter

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


def _is_cap(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1 and (value.is_meta or bool(value >= 0))
    return _is_number(value) and value >= 0


_flag = Allowed(lambda value: isinstance(value, bool), "True or False")

ALLOWED: dict[str, Allowed] = {
    "lr": Allowed(_is_cap, "a number ≥ 0 or a tensor of one such number (math.inf for no cap)"),
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

# What these options of other optimizers mean cannot be left out: a group that asks for it is refused.
REFUSED = frozenset({"weight_decay", "maximize", "nesterov", "projection_fn", "differentiable"})
SCHEDULED = frozenset({"base_momentum", "max_momentum"})  # what schedulers add to a group
NEAR = 0.8  # how similar a misspelt option is: momentm, lower_bnd, but not min_lr


TYPES = frozenset({torch.float64, torch.float32, torch.bfloat16, torch.float16})
KERNELS = frozenset({"cpu", "cuda", "meta"})  # devices on which fused=True runs


def check(owner: str, group: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Raise ValueError for a value that is not allowed and for a misspelt option; other code's keys are its own."""
    for name, value in group.items():
        if name in options:
            check_value(owner, name, value)
        elif (name in REFUSED and not _is_off(value)) or _misspelt(name, options):
            raise ValueError(unknown(owner, name, options))
    both = {**options, **group}
    if both.get("fused") and both.get("foreach"):
        raise ValueError(f"{owner}: fused=True and foreach=True are two ways to move the parameters: choose one.")


def _is_off(value: Any) -> bool:
    return not isinstance(value, Tensor) and (value is False or (_is_number(value) and value == 0))


def _misspelt(name: Any, options: Iterable[str]) -> bool:
    """Return whether a key is nearly an option, but not one with a further word, as max_momentum is."""
    if not isinstance(name, str) or name in SCHEDULED:
        return False
    lower, words = name.lower(), f"_{name}_"
    for option in options:
        near = sorted(lower) == sorted(option) or difflib.SequenceMatcher(None, lower, option).ratio() >= NEAR
        if near and (f"_{option}_" not in words or name.strip("_") == option):
            return True
    return False


def check_value(owner: str, name: str, value: Any) -> None:
    """Raise ValueError unless the option may have this value."""
    allowed = ALLOWED.get(name)
    if allowed is not None and not allowed.test(value):
        raise ValueError(f"{owner}: {name}={_said(value)} is not allowed, it must be {allowed.words}.")


def refuse_cap(owner: str, lr: float) -> NoReturn:
    """Raise ValueError where a schedule has made the cap NaN or negative."""
    raise ValueError(f"{owner}: lr={lr!r} is no cap on a step size: a schedule needs a finite lr > 0 to start from.")


def check_params(owner: str, params: Iterable[Tensor], fused: bool | None) -> None:
    """Raise TypeError unless all parameters can be moved, ValueError or RuntimeError unless as it is asked."""
    for p in params:
        if isinstance(p, Parameter) and not p.requires_grad:
            continue  # such as the quantised weights under an adapter
        if p.dtype.to_real() not in TYPES:
            raise TypeError(f"{owner} moves floating-point and complex parameters: leave the {p.dtype} tensor out.")
        if p.layout != torch.strided:
            raise TypeError(f"{owner} moves dense parameters: leave the sparse one of shape {tuple(p.shape)} out.")
        if fused and p.device.type not in KERNELS:
            raise ValueError(f"{owner}: fused=True has no kernel for the device {p.device}: leave it out.")
        if fused and p.is_cpu and not INTERPRETED and p.dtype in REALS:
            kernels(p.dtype)


def unknown(owner: str, name: str, options: Mapping[str, Any]) -> str:
    """Say that an option does not exist, and which one was probably meant."""
    close = difflib.get_close_matches(name.lower(), options, n=1)
    hint = INSTEAD.get(name) or (f"did you mean {close[0]}?" if close else f"there are {', '.join(sorted(options))}")
    return f"{owner} has no option {name!r}: {hint.rstrip('?.')}{'?' if hint.endswith('?') else '.'}"


def checked(init: Callable[..., None]) -> Callable[..., None]:
    """Return a constructor that refuses options it does not have, but takes the weight_decay=0.0 of trainers."""
    parameters = dict(inspect.signature(init).parameters)
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return init
    options = {name: None for name in parameters if name not in ("self", "params")}

    @functools.wraps(init)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> None:
        if "weight_decay" not in parameters and _is_off(kwargs.get("weight_decay")):
            del kwargs["weight_decay"]
        for name in kwargs:
            if name not in parameters:
                raise TypeError(unknown(type(self).__name__, name, options))
        init(self, *args, **kwargs)

    return wrapper


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
