"""When the parameters are projected: over all groups that name no constraint of their own, and over the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from ._chunks import Vector
from ._distributed import is_sharded
from ._line import Block, Group
from ._vector import add_up, real
from .constraints.balls import L2Ball

if TYPE_CHECKING:
    from .constraints import Constraint


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
            constraint.project_(x)
    if squares and isinstance(shared, L2Ball):
        fused = any(group.get("fused") for group in groups)
        shared.shrink_([real(p) for p in together], add_up(squares, groups[0]["step_size"]), fused)
    elif shared is not None and together:
        shared.project_(together)


def measurable(blocks: Sequence[Block], constraints: Sequence[Constraint | None], shared: Constraint | None) -> bool:
    """Return whether the moves pass by all numbers of the one ball: then its norm costs no reading of its own."""
    if not isinstance(shared, L2Ball) or any(constraint is not shared for constraint in constraints):
        return False
    bound = [p for block in blocks for p in block.group["params"] if p.requires_grad]
    return sum(len(block.params) for block in blocks) == len(bound) and not any(map(is_sharded, bound))
