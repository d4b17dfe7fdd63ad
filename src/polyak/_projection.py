"""When the parameters are projected: over all groups that name no constraint of their own, and over the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ._chunks import Vector
from ._distributed import is_sharded
from ._line import Block, Group
from ._vector import add_up, real, sum_squares
from .constraints.balls import L2Ball

if TYPE_CHECKING:
    from .constraints import Constraint


@torch.no_grad()
def project(
    groups: Sequence[Group],
    constraints: Sequence[Constraint | None],
    shared: Constraint | None,
    squares: Sequence[Tensor] = (),
) -> None:
    """Project what requires a gradient; `squares` add up to ‖x‖² where the moves have measured it."""
    together: Vector = []
    for group, constraint in zip(groups, constraints, strict=True):
        x = [p for p in group["params"] if p.requires_grad]
        if constraint is shared:
            together += x
        elif constraint is not None:
            _project(constraint, x, bool(group.get("fused")))
    if shared is not None and together:
        known = add_up(squares, groups[0]["step_size"]) if squares else None
        _project(shared, together, any(group.get("fused") for group in groups), known)


def _project(constraint: Constraint, params: Vector, fused: bool, squared_norm: Tensor | None = None) -> None:
    if not isinstance(constraint, L2Ball):
        constraint.project_(params)
        return
    x = [real(p) for p in params]
    if squared_norm is None:  # by the routine that measures in a step, so that a projected point stays as it is
        squared_norm = sum_squares(x, params, fused=fused)
    constraint.shrink_(x, squared_norm, fused)


def norm_parts(
    blocks: Sequence[Block],
    moved: Sequence[list[Tensor] | None],
    constraints: Sequence[Constraint | None],
    shared: Constraint | None,
) -> list[Tensor]:
    """Return numbers whose sum is the ‖x‖² of the one ball, if the moves have measured all of it; else none."""
    if not all(moved) or not isinstance(shared, L2Ball) or any(other is not shared for other in constraints):
        return []
    bound = [p for block in blocks for p in block.group["params"] if p.requires_grad]
    if sum(len(block.params) for block in blocks) != len(bound) or any(map(is_sharded, bound)):
        return []
    return [part for parts in moved for part in parts or ()]
