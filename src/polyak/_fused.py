"""fused=True on the CPU: the kernel of torch.optim.SGD, which moves everything in one pass over the memory.

That kernel keeps γ outside the buffer, ALI-G's standard momentum keeps it inside. But it makes the standard move, too,
if the buffer b holds the momentum in units of a scale s, v = s·b:

    b ← mb − (γ/s)u,  x ← x − γu + γmb    is    v ← μv − γu,  x ← x − γu + μv    for    s = √(γ s₋),  m = μ s₋/s

where s₋ is the scale of the step before. The group carries s as `momentum_scale`; any other move sets it back to 1.
"""

from __future__ import annotations

import math
from itertools import chain

import torch
from torch import Tensor

from ._chunks import Vector, flat
from ._line import Block
from ._vector import scale_

TYPES = frozenset({torch.float32, torch.float64})
STRETCH = 1e8  # how far γ may be from s₋, as a factor; beyond that, 1 − (1 − γ/s) would lose digits


def move(block: Block, rows: list[Vector], gamma: float) -> bool:
    """Move the parameters if the kernel can; return whether it could."""
    if not _are_alike(rows) or (factors := _factors(block, gamma)) is None:
        return False
    x, u, v = rows
    _sgd(x, u, v, gamma, *factors)
    return True


def restore_units(block: Block) -> None:
    """v ← s·b: let the buffers hold the momentum itself."""
    scale, block.group["momentum_scale"] = block.group["momentum_scale"], 1.0
    if scale != 1.0:
        for v in block.v + block.idle:
            scale_([v], scale)


def _factors(block: Block, gamma: float) -> tuple[float, float] | None:
    """Return m and γ/s, and keep s; None if this move is not one of the kernel's."""
    group, mu = block.group, block.group["momentum"]
    before = group["momentum_scale"]
    if not mu:
        return None
    if group.get("adjusted_momentum"):
        return (mu, 1.0) if before == 1.0 else None
    if block.idle or not 1 / STRETCH <= gamma / before <= STRETCH:
        return None
    group["momentum_scale"] = scale = math.sqrt(gamma * before)
    return mu * before / scale, gamma / scale


def _are_alike(rows: list[Vector]) -> bool:
    """Return whether all tensors are of one type that the kernel knows, and those of a row lie in memory alike."""
    if len(types := {tensor.dtype for tensor in chain(*rows)}) != 1 or not types <= TYPES:
        return False
    return all(map(Tensor.is_contiguous, chain(*rows))) or None not in map(flat, zip(*rows, strict=True))


def _sgd(x: Vector, u: Vector, v: Vector, gamma: float, momentum: float, fresh: float) -> None:
    """v ← momentum·v − fresh·u;  x ← x − γu + γ·momentum·v."""
    torch._fused_sgd_(
        x,
        u,
        v,
        weight_decay=0.0,
        momentum=momentum,
        lr=-gamma,
        dampening=1.0 - fresh,
        nesterov=True,
        maximize=True,  # −u: our buffer points along the step, torch's along the gradient
        is_first_step=False,
        grad_scale=None,
        found_inf=None,
    )
