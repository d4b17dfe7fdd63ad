"""What keeps a step finite, decided where the numbers are."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .._backend.chunks import Vector
from .._backend.distributed import send
from .._backend.packed import types
from .._backend.scalars import LARGEST, Scalar, as_tensor, minimum, number, opposite, positive_part, where
from .._backend.vector import cast, sum_squares
from .line import Block, Line
from .moves import sum_after


def usable_cap(cap: Scalar, ratio: Scalar) -> Scalar:
    """Return the cap as a number, or as a new tensor beside the ratio, that is not negative."""
    if isinstance(cap, Tensor):
        cap = send(cap, ratio).to(ratio.dtype) if isinstance(ratio, Tensor) else number(cap)
    return positive_part(cap)


def bounded(ratio: Scalar, cap: Scalar, line: Line) -> Any:
    """Return γ = min(ratio, cap), 0 for a zero slope."""
    return where(line.slope > 0, minimum(ratio, cap), 0.0)


def refuse(gamma: Any, line: Line, block: Block, u: Vector) -> tuple[Any, Any]:
    """Return whether to skip the step, and what the momentum is multiplied by: μ, or 1 after a bad measurement.

    A step is skipped if the loss or the norm is not finite, or if the types cannot hold the step. In the second case
    the momentum decays, since a buffer that is too long would otherwise refuse every later step.
    """
    group, slope, largest = block.group, line.slope, LARGEST[block.group["step_size"].dtype]
    if isinstance(gamma, float):  # as in tensors of that type
        gamma, slope = (scalar if scalar <= largest else scalar * math.inf for scalar in (gamma, slope))
    length = gamma * (gamma * slope) + (line.value - line.value)  # NaN if a measurement is not finite
    dtypes = types(block.x)
    limit = min([LARGEST[dtype] for dtype in dtypes - {torch.float16}], default=largest if dtypes else math.inf)
    fitting = length <= limit
    if block.v and group.get("adjusted_momentum"):
        fitting &= _buffer_fits(gamma, slope, block, limit)
    if torch.float16 in dtypes:
        after = sum_after(block, u, gamma)
        fitting &= (after if isinstance(fitting, Tensor) else number(after)) < math.inf
    mu = as_tensor(group["momentum"], length) if isinstance(length, Tensor) else group["momentum"]
    keep = where(length == length, mu, 1.0) if block.v else mu
    return opposite(fitting), keep


def _buffer_fits(gamma: Any, slope: Scalar, block: Block, limit: float) -> Any:
    """Return whether a buffer of gradients stays finite with the next one, and is short enough for the γ of today."""
    group = block.group
    held = sum_squares(block.v, block.params, foreach=group["foreach"], fused=group.get("fused"))
    both = slope + (cast(as_tensor(held, slope), slope) if isinstance(slope, Tensor) else number(held))
    short = both <= min(limit * limit / 4, LARGEST[group["step_size"].dtype])
    return (gamma * (gamma * both) <= limit) & short
