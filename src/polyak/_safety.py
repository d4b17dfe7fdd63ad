"""What keeps a step finite, decided on the device."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ._distributed import send
from ._line import Block, Line
from ._vector import cast, read_on_cpu, sum_squares

LARGEST = {t: torch.finfo(t).max for t in (torch.float64, torch.float32, torch.bfloat16, torch.float16)}


def usable_cap(cap: Tensor | float, ratio: Tensor) -> Tensor | float:
    """Return the cap as a number, or as a new tensor beside the ratio that is not negative."""
    return send(cap, ratio).to(ratio.dtype).clamp(min=0.0) if isinstance(cap, Tensor) else cap


def bounded(ratio: Tensor, cap: Tensor | float, line: Line) -> tuple[Tensor, tuple[float, float, float] | None]:
    """Return γ = min(ratio, cap), 0 for a zero slope; and γ, value and slope as numbers where they may be read."""
    gamma, slope = ratio.clamp(max=cap), read_on_cpu(line.slope)
    if slope is None or not slope > 0:
        gamma = torch.where(line.slope > 0, gamma, 0.0)
    return gamma, None if slope is None else (gamma.item(), line.value.item(), slope)


def fits(numbers: tuple[Any, Any, Any], block: Block) -> Any:
    """Return whether the loss is finite and the parameters' type holds the step's squared length; false for NaN too."""
    (gamma, value, slope), group = numbers, block.group
    largest = min([LARGEST[dtype] for dtype in {tensor.dtype for tensor in block.x}], default=math.inf)
    if not (block.v and group.get("adjusted_momentum")):
        return gamma * (gamma * slope) + (value - value) <= largest
    # This buffer holds gradients, not steps: it may not overflow, nor be too long for the γ of today.
    held = sum_squares(block.v, block.params, foreach=group["foreach"], fused=group.get("fused"))
    slope = slope + (cast(held, slope) if isinstance(slope, Tensor) else held.item())
    short = slope <= min(largest * largest / 4, torch.finfo(group["step_size"].dtype).max)
    return (gamma * (gamma * slope) + (value - value) <= largest) & short
