"""What keeps a step finite, decided on the device."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ._distributed import send
from ._line import Block, Line
from ._vector import sum_squares


def usable_cap(cap: Tensor | float, ratio: Tensor) -> Tensor | float:
    """Return the cap as a number, or as a new tensor beside the ratio that is not negative."""
    return send(cap, ratio).to(ratio.dtype).clamp(min=0.0) if isinstance(cap, Tensor) else cap


def fits(gamma: Tensor, line: Line, block: Block) -> Tensor:
    """Return whether the loss is finite and the parameters' type holds the step's squared length; false for NaN too."""
    largest = min([math.inf, *(torch.finfo(dtype).max for dtype in {tensor.dtype for tensor in block.x})])
    slope, group = line.slope, block.group
    adjusted = block.v and group.get("adjusted_momentum")
    if adjusted:  # this buffer holds gradients, not steps: it may not overflow, nor be too long for the γ of today
        slope = slope + sum_squares(block.v, block.params, foreach=group["foreach"], fused=group.get("fused")).to(slope)
    sane = gamma * (gamma * slope) + (line.value - line.value) <= largest
    return sane & (slope <= min(largest * largest / 4, torch.finfo(slope.dtype).max)) if adjusted else sane
