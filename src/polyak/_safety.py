"""What keeps a step finite, decided on the device."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ._distributed import send
from ._line import Block
from ._vector import Scalar, cast, sum_squares


def usable_cap(cap: Tensor | float, ratio: Tensor) -> Tensor | float:
    """Return the cap as a number, or as a new tensor beside the ratio that is not negative."""
    return send(cap, ratio).to(ratio.dtype).clamp(min=0.0) if isinstance(cap, Tensor) else cap


def fits(gamma: Scalar, value: Scalar, slope: Scalar, block: Block) -> Any:
    """Return whether the loss is finite and the parameters' type holds the step's squared length; false for NaN too."""
    largest, group = _largest(frozenset([tensor.dtype for tensor in block.x])), block.group
    if not (block.v and group.get("adjusted_momentum")):
        return gamma * (gamma * slope) + (value - value) <= largest
    # This buffer holds gradients, not steps: it may not overflow, nor be too long for the γ of today.
    held = sum_squares(block.v, block.params, foreach=group["foreach"], fused=group.get("fused"))
    slope = slope + (cast(held, slope) if isinstance(slope, Tensor) else held.item())
    short = slope <= min(largest * largest / 4, torch.finfo(group["step_size"].dtype).max)
    return (gamma * (gamma * slope) + (value - value) <= largest) & short


@cache
def _largest(dtypes: frozenset[torch.dtype]) -> float:
    """Return the largest number that all types can hold."""
    return min([math.inf, *(torch.finfo(dtype).max for dtype in dtypes)])
