"""What keeps a step finite, decided on the device."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ._distributed import send
from ._line import Block
from ._vector import sum_squares


def usable_cap(cap: Tensor | float, ratio: Tensor) -> Tensor | float:
    """Return the cap as a number, or as a new tensor beside the ratio that is not negative."""
    return send(cap, ratio).to(ratio.dtype).clamp(min=0.0) if isinstance(cap, Tensor) else cap


def fits(gamma: Tensor, slope: Tensor, block: Block) -> Tensor:
    """Return whether the type of the parameters can hold the squared length of the step; false for NaN as well."""
    largest = min([math.inf, *(torch.finfo(dtype).max for dtype in {tensor.dtype for tensor in block.x})])
    if not (block.v and block.group.get("adjusted_momentum")):
        return gamma * (gamma * slope) <= largest
    # This buffer holds gradients, not steps: it may not overflow, nor be too long for the γ of today.
    slope = slope + sum_squares(block.v, block.params, foreach=block.group["foreach"]).to(slope)
    return (gamma * (gamma * slope) <= largest) & (slope <= min(largest * largest / 4, torch.finfo(slope.dtype).max))
