"""When the parameters are projected: over all groups that name no constraint of their own, and over the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from .._backend.chunks import Vector
from .._backend.distributed import any_sharded
from .._backend.scalars import Scalar
from .._backend.vector import add_up, real, sum_squares
from ..constraints.balls import L2Ball
from .line import Block, Group

if TYPE_CHECKING:
    from ..constraints import Constraint


@torch.no_grad()
def project(groups: Sequence[Group], constraints: Sequence[Constraint | None], shared: Constraint | None) -> None:
    """Project what requires a gradient."""
    together: Vector = []
    for group, constraint in zip(groups, constraints, strict=True):
        x = [p for p in group["params"] if p.requires_grad]
        if constraint is shared:
            together += x
        elif constraint is not None:
            _project(constraint, x, bool(group.get("fused")))
    if shared is not None and together:
        _project(shared, together, any(group.get("fused") for group in groups))


def _project(constraint: Constraint, params: Vector, fused: bool) -> None:
    if isinstance(constraint, L2Ball):  # measured by the routine of a step, so that a projected point stays as it is
        x = [real(p) for p in params]
        constraint.shrink_(x, sum_squares(x, params, fused=fused), fused)
    else:
        constraint.project_(params)


def shrink(ball: L2Ball, blocks: Sequence[Block], squares: Sequence[Scalar]) -> None:
    """Project what has moved onto a ball; `squares` add up to its ‖x‖²."""
    x = blocks[0].x if len(blocks) == 1 else [tensor for block in blocks for tensor in block.x]
    fused = any(block.group.get("fused") for block in blocks)
    ball.shrink_(x, add_up(squares, blocks[0].group["step_size"]), fused)


def ball_of(
    blocks: Sequence[Block], constraints: Sequence[Constraint | None], shared: Constraint | None
) -> L2Ball | None:
    """Return the one ball that holds just what a step moves, if there is one: its norm can be measured on the way."""
    if not isinstance(shared, L2Ball) or any(other is not shared for other in constraints):
        return None
    bound = [p for block in blocks for p in block.group["params"] if p.requires_grad]
    if sum(len(block.params) for block in blocks) != len(bound) or any_sharded(bound):
        return None
    return shared
