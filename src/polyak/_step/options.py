"""What each option may be, as data: checked for every parameter group, and said in one sentence when it is not so."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, NoReturn, TypedDict

import torch
import torch.distributed
from torch import Tensor
from torch.nn import Parameter

from .._backend.chunks import INTERPRETED
from .._backend.cpu_build import REALS, kernels
from .._backend.distributed import PIECES, is_shard_of_zero, needs_whole
from ..constraints import Constraint

if TYPE_CHECKING or torch.distributed.is_available():
    from torch.distributed import ProcessGroup as ProcessGroup
else:
    ProcessGroup = Any


class Allowed(NamedTuple):
    """The values an option may take: a test, and the same in words."""

    test: Callable[[Any], bool]
    words: str


def is_number(value: Any) -> bool:
    """Return whether a value is a real number, which True is not."""
    return isinstance(value, Real) and not isinstance(value, bool)


def numbers(test: Callable[[Any], bool], words: str) -> Allowed:
    """Return the numbers that pass a test."""
    return Allowed(lambda value: is_number(value) and test(value), words)


def _is_cap(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1 and (value.is_meta or bool(value >= 0))
    return is_number(value) and value >= 0


Cap = Annotated[float | Tensor, Allowed(_is_cap, "a number ≥ 0 or a tensor of one such number (math.inf for no cap)")]
Finite = Annotated[float, numbers(math.isfinite, "a finite number")]
Positive = Annotated[float, numbers(lambda value: 0 < value < math.inf, "a finite number > 0")]
PositiveOrNone = Annotated[
    float | None,
    Allowed(lambda value: value is None or (is_number(value) and 0 < value < math.inf), "None or a finite number > 0"),
]
NonNegative = Annotated[float, numbers(lambda value: 0 <= value < math.inf, "a finite number ≥ 0")]
Fraction = Annotated[float, numbers(lambda value: 0 <= value < 1, "a number in [0, 1)")]
FractionOrNone = Annotated[
    float | None,
    Allowed(lambda value: value is None or (is_number(value) and 0 <= value < 1), "None or a number in [0, 1)"),
]
Steps = Annotated[float, numbers(lambda n: 1 <= n < math.inf, "a number ≥ 1, usually len(data_loader)")]
Count = Annotated[int, numbers(lambda n: 0 <= n < math.inf and n == int(n), "an integer ≥ 0")]
Iterations = Annotated[int, numbers(lambda n: 1 <= n < math.inf and n == int(n), "an integer ≥ 1")]
Norm = Annotated[str | None, Allowed(lambda norm: norm in (None, "spectral", "adam"), "None, 'spectral' or 'adam'")]
Polar = Annotated[
    str, Allowed(lambda name: name in ("polar-express", "newton-schulz"), "'polar-express' or 'newton-schulz'")
]
PositiveOrInf = Annotated[float, numbers(lambda gamma: gamma > 0, "a number > 0")]
Growth = Annotated[float, numbers(lambda n: 1 <= n < math.inf, "a finite number ≥ 1, the growth of the cap per epoch")]
Betas = Annotated[
    tuple[float, float],
    Allowed(
        lambda betas: (
            isinstance(betas, tuple | list)
            and len(betas) == 2
            and all(is_number(beta) and 0 <= beta < 1 for beta in betas)
        ),
        "two numbers in [0, 1)",
    ),
]
Flag = Annotated[bool, Allowed(lambda value: isinstance(value, bool), "True or False")]
Choice = Annotated[bool | None, Allowed(lambda value: value is None or isinstance(value, bool), "None, True or False")]


class Common(TypedDict, total=False):
    """The options of every method; `PolyakOptimizer` has their defaults.

    Args:
        lower_bound: a bound on the loss from below, any finite number. Default 0.
        constraint: a convex set such as `polyak.L2Ball(relative=1.5)`; the parameters are projected on it at
            construction and after every step. Default None. A group's own `constraint` holds for that group alone.
        foreach: use multi-tensor kernels; None picks them on CUDA devices, and pieces that fit the cache on the CPU.
        fused: move and measure in one pass over the memory, on CUDA by Triton kernels, on the CPU by kernels that the
            machine's C compiler builds at the first use. Default None, which is False.
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

# What these options of other optimizers mean cannot be left out: a group that asks for it is refused.
REFUSED = frozenset({"weight_decay", "maximize", "nesterov", "projection_fn", "differentiable"})
FOREIGN = frozenset({"base_momentum", "max_momentum", "betas", "beta1", "beta2"})  # schedulers' and Adam's keys
_GAMMA_DECAYS = frozenset({"floor", "rho", "samples"})  # options of methods that multiply their decay by γ, not by lr
NEAR = 0.8  # how similar a misspelt option is: momentm, lower_bnd, but not min_lr


TYPES = frozenset({torch.float64, torch.float32, torch.bfloat16, torch.float16})
KERNELS = frozenset({"cpu", "cuda", "meta"})  # devices on which fused=True runs


def check(owner: str, group: Mapping[str, Any], options: Mapping[str, Any], ranges: Mapping[str, Allowed]) -> None:
    """Raise ValueError for a value that is not allowed and for a misspelt option; other code's keys are its own."""
    for name, value in group.items():
        if name in options:
            check_value(owner, name, value, ranges.get(name))
        elif (name in REFUSED and not is_off(value)) or _misspelt(name, options):
            raise ValueError(unknown(owner, name, options))
    both = {**options, **group}
    by_lr = _GAMMA_DECAYS.isdisjoint(options)
    if by_lr and both.get("weight_decay") and is_number(both["lr"]) and both["lr"] == math.inf:
        raise ValueError(f"{owner}: weight_decay needs a finite lr, which scales it: lower lr from inf.")
    if both.get("fused") and both.get("foreach"):
        raise ValueError(f"{owner}: fused=True and foreach=True are two ways to move the parameters: choose one.")


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


def check_value(owner: str, name: str, value: Any, allowed: Allowed | None) -> None:
    """Raise ValueError unless the option may have this value."""
    if allowed is not None and not allowed.test(value):
        raise ValueError(f"{owner}: {name}={_said(value)} is not allowed, it must be {allowed.words}.")


def refuse_cap(owner: str, lr: float) -> NoReturn:
    """Raise ValueError where a schedule has made the cap NaN or negative."""
    raise ValueError(f"{owner}: lr={lr!r} is no cap on a step size: a schedule needs a finite lr > 0 to start from.")


def check_params(owner: str, params: Iterable[Tensor], fused: bool | None, norm: str | None = None) -> None:
    """Raise TypeError unless all parameters can be moved, ValueError or RuntimeError unless as it is asked."""
    for p in params:
        if isinstance(p, Parameter) and not p.requires_grad:
            continue  # such as the quantised weights under an adapter
        if p.dtype.to_real() not in TYPES:
            raise TypeError(f"{owner} moves floating-point and complex parameters: leave the {p.dtype} tensor out.")
        if p.layout != torch.strided:
            raise TypeError(f"{owner} moves dense parameters: leave the sparse one of shape {tuple(p.shape)} out.")
        if norm == "spectral" and not is_matrix(p, norm):
            raise ValueError(
                f"{owner}: norm='spectral' is for real matrices, but a {p.dtype} parameter has shape {tuple(p.shape)}: "
                "put it in a group with norm='adam'."
            )
        if fused and p.device.type not in KERNELS:
            raise ValueError(f"{owner}: fused=True has no kernel for the device {p.device}: leave it out.")
        if fused and p.is_cpu and not INTERPRETED and p.dtype in REALS:
            kernels(p.dtype)


def is_matrix(p: Tensor, norm: str | None) -> bool:
    """Return whether a parameter is moved in the spectral norm."""
    return norm != "adam" and p.dim() == 2 and p.numel() > 0 and not p.is_complex()


def unknown(owner: str, name: str, options: Mapping[str, Any]) -> str:
    """Say that an option does not exist, and which one was probably meant."""
    close = difflib.get_close_matches(name.lower(), options, n=1)
    hint = INSTEAD.get(name) or (f"did you mean {close[0]}?" if close else f"there are {', '.join(sorted(options))}")
    return f"{owner} has no option {name!r}: {hint.rstrip('?.')}{'?' if hint.endswith('?') else '.'}"


def check_dense(grad: Tensor) -> None:
    """Raise RuntimeError for a sparse gradient."""
    if grad.layout != torch.strided:
        raise RuntimeError(
            f"A gradient of shape {tuple(grad.shape)} is sparse, but a Polyak step needs dense ones: "
            "build the layer with sparse=False."
        )


def check_constraint(owner: str, constraint: Any) -> Any:
    """Return the constraint; raise TypeError unless it is one, ValueError if it does not fit a shard."""
    if isinstance(constraint, type) or not (constraint is None or callable(getattr(constraint, "project_", None))):
        given = f"the class {constraint.__name__}" if isinstance(constraint, type) else f"a {type(constraint).__name__}"
        raise TypeError(f"{owner}: constraint is {given}, but must be an object such as polyak.L2Ball(100.0), or None.")
    if needs_whole(constraint) and is_shard_of_zero():
        raise ValueError(f"{owner}: {type(constraint).__name__} {PIECES}")
    return constraint


def _said(value: Any) -> str:
    return (
        f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) and value.numel() != 1 else repr(value)
    )
