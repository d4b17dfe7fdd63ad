"""What each option may be, as data: checked for every parameter group, and refused in one sentence."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypedDict

import torch
import torch.distributed
from torch import Tensor

from .._backend.scalars import is_number, quoted
from ..constraints import Constraint

if TYPE_CHECKING or torch.distributed.is_available():
    from torch.distributed import ProcessGroup as ProcessGroup
else:
    ProcessGroup = Any


class Allowed(NamedTuple):
    """The values an option may take: a test, the same in words, and how such a value is kept.

    Numbers are kept as Python's own. NumPy's would round in their type, and could not be loaded with weights_only=True.
    """

    test: Callable[[Any], bool]
    words: str
    keep: Callable[[Any], Any] = lambda value: value


def numbers(test: Callable[[Any], bool], words: str, keep: Callable[[Any], Any] = float) -> Allowed:
    """Return the numbers that pass a test."""
    return Allowed(lambda value: is_number(value) and test(float(value)), words, keep)


def or_none(allowed: Allowed) -> Allowed:
    """Return the same values and None."""
    test, words, keep = allowed
    return Allowed(
        lambda value: value is None or test(value),
        f"None or {words}",
        lambda value: value if value is None else keep(value),
    )


def _is_cap(value: Any) -> bool:
    if isinstance(value, Tensor):
        return _is_real_number(value) and (value.is_meta or bool(value >= 0))
    return is_number(value) and value >= 0


def _is_factor(value: Any) -> bool:
    return _is_cap(value) and ((isinstance(value, Tensor) and value.is_meta) or bool(value < math.inf))


def _is_real_number(value: Tensor) -> bool:
    is_real = not value.is_complex() and value.dtype is not torch.bool and value.layout is torch.strided
    return is_real and value.numel() == 1


def is_scalar(value: Tensor) -> bool:
    """Return whether a tensor has no dimension and a type in which a schedule is not rounded."""
    return value.is_floating_point() and not value.dim()


def _keep_cap(value: Any) -> Any:
    """Return a tensor as it is, unless it has a type of integers, in which a schedule would round it to 0."""
    if isinstance(value, Tensor):
        return value if value.is_floating_point() else value.float()
    return float(value)


def _are_betas(value: Any) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2 and all(map(_FRACTION.test, value))


_POSITIVE = numbers(lambda value: 0 < value < math.inf, "a finite number > 0")
_FRACTION = numbers(lambda value: 0 <= value < 1, "a number in [0, 1)")
_CAP_WORDS = "a number ≥ 0 or a tensor of one such number (math.inf for no cap)"
Cap = Annotated[float | Tensor, Allowed(_is_cap, _CAP_WORDS, _keep_cap)]
Factor = Annotated[float | Tensor, Allowed(_is_factor, "a finite number ≥ 0 or a tensor of one such number", _keep_cap)]
Finite = Annotated[float, numbers(math.isfinite, "a finite number")]
Positive = Annotated[float, _POSITIVE]
PositiveOrNone = Annotated[float | None, or_none(_POSITIVE)]
NonNegative = Annotated[float, numbers(lambda value: 0 <= value < math.inf, "a finite number ≥ 0")]
Fraction = Annotated[float, _FRACTION]
FractionOrNone = Annotated[float | None, or_none(_FRACTION)]
Steps = Annotated[float, numbers(lambda n: 1 <= n < math.inf, "a number ≥ 1, usually len(data_loader)")]
Count = Annotated[int, numbers(lambda n: 0 <= n < 2**63 and n == int(n), "an integer ≥ 0", int)]
Iterations = Annotated[int, numbers(lambda n: 1 <= n < 2**63 and n == int(n), "an integer ≥ 1", int)]
Rounds = Annotated[int, numbers(lambda n: 1 <= n <= 100 and n == int(n), "an integer ≥ 1, at most 100", int)]
Norm = Annotated[
    str | None, or_none(Allowed(lambda norm: _is_one_of(norm, "spectral", "adam"), "'spectral' or 'adam'"))
]
Polar = Annotated[
    str, Allowed(lambda name: _is_one_of(name, "polar-express", "newton-schulz"), "'polar-express' or 'newton-schulz'")
]
PositiveOrInf = Annotated[float, numbers(lambda gamma: gamma > 0, "a number > 0")]
Growth = Annotated[float, numbers(lambda n: 1 <= n < math.inf, "a finite number ≥ 1, the growth of the cap per epoch")]
Betas = Annotated[
    tuple[float, float],
    Allowed(_are_betas, "two numbers in [0, 1)", lambda betas: tuple(map(float, betas))),
]
Flag = Annotated[bool, Allowed(lambda value: isinstance(value, bool), "True or False")]
Choice = Annotated[bool | None, Allowed(lambda value: value is None or isinstance(value, bool), "None, True or False")]


class Common(TypedDict, total=False):
    """The options of every method; `PolyakOptimizer` has their defaults.

    Args:
        lower_bound: a bound on the loss from below, any finite number. Default 0.
        constraint: a convex set such as `polyak.L2Ball(relative=1.5)`; the parameters are projected on it at
            construction and after every step. Default None. A group's own `constraint` holds for that group alone.
        foreach: use torch's multi-tensor kernels; None picks them on CUDA, where `fused` has no kernels, and pieces
            that fit the cache on the CPU.
        fused: move and measure in one pass over the memory, on CUDA by Triton kernels, on the CPU by kernels that the
            machine's C compiler builds at the first use. None: on CUDA if they compile and `foreach` is not given.
        sync_loss: average the loss over processes when torch.distributed is initialised, as DDP and FSDP2 average the
            gradients. Default True; with False every process steps on its own loss.
        process_group: the processes that share the loss; None for all.

    Raises:
        ValueError: an option is outside its range, or a group misspells it.
        TypeError: an argument does not exist, `constraint` is not a Constraint, or a parameter is sparse or not
            floating-point.
        RuntimeError: `fused` is True where there is no C compiler (CPU) or no Triton (CUDA).
    """

    lower_bound: Finite
    constraint: Constraint | None
    foreach: Choice
    fused: Choice
    sync_loss: Flag
    process_group: ProcessGroup | None


class CommonAndBuffers(Common, total=False):
    """The options of every method that keeps a momentum or an average of gradients.

    Args:
        float32_momentum: keep the momentum of bfloat16 and float16 parameters in float32. Default False.
    """

    float32_momentum: Flag


class CommonAndMomentum(CommonAndBuffers, total=False):
    """The options of every method with ALI-G's momentum.

    Args:
        momentum: μ in [0, 1). Default 0.
        float32_momentum: keep the momentum of bfloat16 and float16 parameters in float32. Default False.
    """

    momentum: Fraction


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

SAME = {"momentum": "betas", "betas": "momentum"}  # how slowly an average of gradients forgets
# What these options of other optimizers mean cannot be left out: a group that asks for it is refused.
REFUSED = frozenset({"weight_decay", "maximize", "nesterov", "projection_fn", "differentiable", "amsgrad", "dampening"})
FOREIGN = frozenset({"base_momentum", "max_momentum", "betas", "beta1", "beta2"})  # schedulers' and Adam's keys
_GAMMA_DECAYS = frozenset({"floor", "rho", "samples"})  # options of methods that multiply their decay by γ, not by lr
NEAR = 0.8  # how similar a misspelt option is: momentm, lower_bnd, but not min_lr


def as_group(owner: str, group: Any) -> dict[str, Any]:
    """Return a parameter group; raise TypeError unless it is a dict with parameters."""
    if isinstance(group, dict) and "params" in group:
        return group
    given = f"the dict {quoted(group)}" if isinstance(group, dict) else f"a {type(group).__name__}"
    raise TypeError(f'{owner}: a parameter group is {given}, but must be a dict such as {{"params": [p], "lr": 0.1}}.')


def check(owner: str, group: dict[str, Any], options: Mapping[str, Any], ranges: Mapping[str, Allowed]) -> None:
    """Raise ValueError for a value that is not allowed and for a misspelt option; other code's keys are its own."""
    for name, value in group.items():
        if name in options:
            group[name] = check_value(owner, name, value, ranges.get(name))
        elif (name in REFUSED and not is_off(value)) or _misspelt(name, options):
            raise ValueError(unknown(owner, name, options))
    both = {**options, **group}
    check_decay(owner, both, options)
    if both.get("fused") and both.get("foreach"):
        raise ValueError(f"{owner}: fused=True and foreach=True are two ways to move the parameters: choose one.")


def check_decay(owner: str, group: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Raise ValueError if a weight decay is scaled by a cap of inf; a device is not asked."""
    by_lr = group.get("weight_decay") and _GAMMA_DECAYS.isdisjoint(options)
    if by_lr and is_infinite(group["lr"]):
        raise ValueError(f"{owner}: weight_decay needs a finite lr, which scales it: lower lr from inf.")


def is_infinite(lr: Any) -> bool:
    """Return whether lr is known to be inf; a device is not asked."""
    return bool((lr.is_cpu if isinstance(lr, Tensor) else True) and lr == math.inf)


def is_off(value: Any) -> bool:
    """Return whether an option of another optimizer is given, but turned off."""
    return not isinstance(value, Tensor) and (value is False or (is_number(value) and value == 0))


def _misspelt(name: Any, options: Iterable[str]) -> bool:
    """Return whether a key is nearly an option, but not one with a further word, as max_momentum is."""
    if not isinstance(name, str) or name in FOREIGN:
        return False
    lower, words = name.lower(), f"_{name}_"
    for option in options:
        near = difflib.SequenceMatcher(None, lower, option).ratio() >= NEAR or sorted(lower) == sorted(option)
        further_word = f"_{option}_" in words and name.strip("_") != option
        if (near or _one_letter_apart(lower, option)) and not further_word:
            return True
    return False


def _one_letter_apart(name: str, option: str) -> bool:
    return len(name) == len(option) > 3 and sum(a != b for a, b in zip(name, option, strict=True)) == 1


def check_value(owner: str, name: str, value: Any, allowed: Allowed | None) -> Any:
    """Return the value of an option as it is kept; raise ValueError unless the option may have it."""
    if allowed is None:
        return value
    if not allowed.test(value):
        raise ValueError(f"{owner}: {name}={quoted(value)} is not allowed, it must be {allowed.words}.")
    return allowed.keep(value)


def check_lr(owner: str, group: dict[str, Any], options: Mapping[str, Any], allowed: Allowed | None) -> None:
    """Raise ValueError where a schedule, or other code, has made lr something that is no cap, or no finite factor."""
    lr = group.setdefault("lr", options["lr"])  # which a group that was put into the list may lack
    if isinstance(lr, Tensor) and not is_scalar(lr):
        if not _is_real_number(lr):
            raise ValueError(f"{owner}: lr={quoted(lr)} is not allowed, it must be {_CAP_WORDS}.")
        group["lr"] = lr = _keep_cap(lr).reshape(())
    if not isinstance(lr, Tensor) and not (is_number(lr) and lr >= 0):
        raise ValueError(
            f"{owner}: lr={quoted(lr)} is no cap on a step size: a schedule needs a finite lr > 0 to start from."
        )
    if is_infinite(lr):
        check_value(owner, "lr", lr, allowed)
    check_decay(owner, group, options)


def check_group(owner: str, process_group: Any) -> Any:
    """Return the processes that share the loss; raise TypeError unless they are a process group or None."""
    if torch.distributed.is_available() and not isinstance(process_group, ProcessGroup | None):
        raise TypeError(
            f"{owner}: process_group is of type {type(process_group).__name__}, but must be what "
            "torch.distributed.new_group() returns to a member, or None for all processes."
        )
    return process_group


def is_matrix(p: Tensor, norm: str | None) -> bool:
    """Return whether a parameter is moved in the spectral norm."""
    return norm != "adam" and p.dim() == 2 and p.numel() > 0 and not p.is_complex()


def unknown(owner: str, name: str, options: Mapping[str, Any]) -> str:
    """Say that an option does not exist, and which one was probably meant."""
    close = [SAME[name]] if SAME.get(name) in options else difflib.get_close_matches(name.lower(), options, n=1)
    hint = INSTEAD.get(name) or (f"did you mean {close[0]}?" if close else f"there are {', '.join(sorted(options))}")
    return f"{owner} has no option {name!r}: {hint.rstrip('?.')}{'?' if hint.endswith('?') else '.'}"


def check_dense(grad: Tensor) -> None:
    """Raise RuntimeError for a sparse gradient."""
    if grad.layout != torch.strided:
        raise RuntimeError(
            f"A gradient of shape {tuple(grad.shape)} is sparse, but a Polyak step needs dense ones: "
            "build the layer with sparse=False."
        )


def _is_one_of(value: Any, *names: str) -> bool:
    return isinstance(value, str) and value in names
