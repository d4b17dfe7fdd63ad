"""The projection after a step: of all groups together that name no constraint, and of each other group by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ..constraints.balls import L2Ball
from .parts import Group, whole

if TYPE_CHECKING:
    from ..constraints import Constraint


@torch.no_grad()
def project(groups: Sequence[Group], shared: Constraint | None) -> None:
    """Project what requires a gradient."""
    if shared is not None:
        _project(shared, [group for group in groups if "constraint" not in group])
    for group in groups:
        if group.get("constraint") is not None:
            _project(group["constraint"], [group])


def _project(constraint: Constraint, groups: Sequence[Group]) -> None:
    params = [[p for p in group["params"] if p.requires_grad] for group in groups]
    if isinstance(constraint, L2Ball):  # measured as in a step, so that a projected point stays as it is
        parts = [whole(group, own) for group, own in zip(groups, params, strict=True) if own]
        if parts:
            constraint.shrink_(parts, [part.sum_squares(part.x) for part in parts])
    elif any(params):
        constraint.project_([p for own in params for p in own])


def keep_constraints(groups: Sequence[Group], loaded: Sequence[Group]) -> None:
    """Give the groups that a state holds the constraints of the groups that they replace."""
    for group, new in zip(groups, loaded, strict=False):
        new.pop("constraint", None)
        if "constraint" in group:
            new["constraint"] = group["constraint"]
