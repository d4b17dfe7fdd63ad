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
def project(groups: Sequence[Group], shared: Constraint | None) -> None:
    """Project what requires a gradient."""
    together: Vector = []
    for group in groups:
        x = [p for p in group["params"] if p.requires_grad]
        if "constraint" not in group:
            together += x
        elif group["constraint"] is not None:
            _project(group["constraint"], x, bool(group.get("fused")))
    if shared is not None and together:
        _project(shared, together, any(group.get("fused") for group in groups))


def keep_constraints(groups: Sequence[Group], loaded: Sequence[Group]) -> None:
    """Give the groups that a state holds the constraints of the groups that they replace."""
    for group, new in zip(groups, loaded, strict=False):
        new.pop("constraint", None)
        if "constraint" in group:
            new["constraint"] = group["constraint"]


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


def ball_of(blocks: Sequence[Block], shared: Constraint | None) -> L2Ball | None:
    """Return the one ball that holds just what a step moves, if there is one: its norm can be measured on the way."""
    if not isinstance(shared, L2Ball) or any("constraint" in block.group for block in blocks):
        return None
    moving = [p for block in blocks for p in block.params]
    bound = [p for block in blocks for p in block.group["params"] if p.requires_grad]
    if len(moving) != len(bound) or any(p is not q for p, q in zip(moving, bound, strict=True)):
        return None
    return None if any_sharded(bound) else shared
