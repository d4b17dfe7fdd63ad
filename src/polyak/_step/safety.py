"""What keeps a step finite, decided where the numbers are."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from .._backend.distributed import send
from .._backend.packed import types
from .._backend.scalars import LARGEST, Scalar, as_tensor, minimum, number, positive_part, where
from .._backend.vector import cast, sum_squares
from .line import Block, Line


def usable_cap(cap: Scalar, ratio: Scalar) -> Scalar:
    """Return the cap as a number, or as a new tensor beside the ratio, that is not negative."""
    if isinstance(cap, Tensor):
        cap = send(cap, ratio).to(ratio.dtype) if isinstance(ratio, Tensor) else number(cap)
    return positive_part(cap)


def bounded(ratio: Scalar, cap: Scalar, line: Line) -> Any:
    """Return γ = min(ratio, cap), 0 for a zero slope."""
    return where(line.slope > 0, minimum(ratio, cap), 0.0)


def fits(gamma: Any, line: Line, block: Block) -> Any:
    """Return whether the loss is finite and the parameters' type holds the step's squared length; false for NaN too."""
    group, value, slope = block.group, line.value, line.slope
    if isinstance(gamma, float) and max(gamma, slope) > LARGEST[group["step_size"].dtype]:
        return False  # a tensor of that type would have become inf, and so would the step
    largest = min([LARGEST[dtype] for dtype in types(block.x)], default=math.inf)
    if not (block.v and group.get("adjusted_momentum")):
        return gamma * (gamma * slope) + (value - value) <= largest
    # This buffer holds gradients, not steps: it may not overflow, nor be too long for the γ of today.
    held = sum_squares(block.v, block.params, foreach=group["foreach"], fused=group.get("fused"))
    slope = slope + (cast(as_tensor(held, slope), slope) if isinstance(slope, Tensor) else number(held))
    short = slope <= min(largest * largest / 4, LARGEST[group["step_size"].dtype])
    return (gamma * (gamma * slope) + (value - value) <= largest) & short
