"""Scalars of a step: plain numbers where the host may read them, on the CPU; elsewhere 0-dim tensors.

On a GPU the host would wait for a number. On the CPU an operation on a 0-dim tensor takes longer than the rest of the
formula, and small networks would feel it.
"""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import torch
from torch import Tensor

Scalar = Tensor | float
TYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
LARGEST = {t: torch.finfo(t).max for t in TYPES}
WIDEST = {"mps": torch.float32}  # which has no float64
TINY = {t: torch.finfo(t).tiny for t in TYPES}  # below it, a product with a number near 1 is rounded to what it was
LONGEST = 60  # characters of a value in a sentence


def is_number(value: Any) -> bool:
    """Return whether a value is a real number that a float can hold, which True is not."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        float(value)
    except OverflowError:
        return False
    return True


def number(scalar: Scalar) -> float:
    """Return a scalar as a plain number."""
    return scalar.item() if isinstance(scalar, Tensor) else scalar


def as_tensor(scalar: Scalar, like: Tensor) -> Tensor:
    """Return a scalar as a 0-dim tensor; a number in the type of another and beside it, inf if it is too large."""
    if isinstance(scalar, Tensor):
        return scalar
    return torch.full_like(like, scalar if abs(scalar) <= LARGEST.get(like.dtype, math.inf) else scalar * math.inf)


def store_(old: Tensor, new: Tensor) -> None:
    """old ← new, and in compiled code, too: see `vector.local_real_view`."""
    if torch.compiler.is_compiling():
        torch._foreach_copy_([old], [new])
    else:
        old.copy_(new)


def away_from_zero(a: Scalar, dtype: torch.dtype) -> Scalar:
    """Return a scalar that a type holds with all its digits: one that is not 0 does not become 0 there."""
    if isinstance(a, Tensor):
        return torch.where(a == 0, a, a.sign() * a.abs().clamp(min=TINY[dtype]))
    return math.copysign(max(abs(a), TINY[dtype]), a) if a else a


def minimum(a: Scalar, b: Scalar) -> Scalar:
    """Return min{a, b}, or NaN if either is NaN."""
    if isinstance(a, Tensor):
        return a.clamp(max=_representable(b, a.dtype))
    if isinstance(b, Tensor):
        return b.clamp(max=_representable(a, b.dtype))
    return b if b < a or b != b else a


def _representable(b: Scalar, dtype: torch.dtype) -> Scalar:
    """Return b, or ±inf for a number that a type cannot hold, at which `clamp` would raise."""
    return b if isinstance(b, Tensor) or abs(b) <= LARGEST.get(dtype, math.inf) else b * math.inf


def maximum(a: Scalar, b: Scalar) -> Any:
    """Return max{a, b}, or NaN if either is NaN."""
    return -minimum(-a, -b)


def positive_part(a: Scalar) -> Scalar:
    """Return max{a, 0}, or NaN if a is NaN."""
    if isinstance(a, Tensor):
        return a.clamp(min=0.0)
    return 0.0 if a < 0 else a


def bias_correction(beta: float, k: Scalar) -> Scalar:
    """Return 1 − βᵏ, the weight of k values in an average that began at 0; float32 would lose 1e-4 of it in βᵏ."""
    if isinstance(k, Tensor) and beta > 0:
        return -torch.expm1(k * math.log(beta))
    return 1.0 - beta**k


def where(condition: Tensor | bool, a: Scalar, b: Scalar) -> Any:
    """Return a where the condition holds, else b."""
    if isinstance(condition, Tensor):
        if not isinstance(a, Tensor) and not isinstance(b, Tensor):  # of two numbers, torch would make float32
            a = torch.full((), a, dtype=WIDEST.get(condition.device.type, torch.float64), device=condition.device)
        return torch.where(condition, a, b)
    return a if condition else b


def quoted(value: Any) -> str:
    """Return a value as it is quoted in a sentence, on one line and not too long."""
    if isinstance(value, Tensor) and (value.numel() != 1 or value.layout is not torch.strided):
        return f"a tensor of shape {tuple(value.shape)}"
    words = " ".join(_repr(value).split())
    return words if len(words) <= LONGEST else f"{words[:LONGEST]}…"


def _repr(value: Any) -> str:
    try:
        return repr(value)
    except ValueError:  # Python writes no integer of more than 4300 digits
        return f"a {type(value).__name__}"


def largest_but_float16(dtypes: set[torch.dtype], group: dict[str, Any]) -> float:
    """Return the largest number that types hold; of float16 alone, the largest scalar."""
    scalar = LARGEST[group["step_size"].dtype] if dtypes else math.inf
    return min([LARGEST[dtype] for dtype in dtypes - {torch.float16}], default=scalar)
