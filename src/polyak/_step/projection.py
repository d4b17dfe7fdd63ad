"""The projection after a step: of all groups together that name no constraint, and of each other group by itself.

Before the first step, a ball that is relative to the norm of the parameters is given its radius here, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.parameter import is_lazy

from .._backend.distributed import PIECES, RADIUS, is_shard_of_zero, needs_whole, send
from .._backend.moves import MOMENTUM
from .._backend.scalars import number
from .._backend.vector import add_, add_up, assign_, local_real_view, squares_together
from ..constraints._base import constrained, is_frozen
from ..constraints.balls import L2Ball
from .advice import Advice
from .parts import Group, Part, whole
from .torch_hooks import reshard

if TYPE_CHECKING:
    from ..constraints import Constraint


@torch.no_grad()
def project(groups: Sequence[Group], shared: Constraint | None, parts: Sequence[Part] = ()) -> None:
    """Project what is not frozen; of a schedule-free method whose `parts` have moved, z."""
    if any([part.form.holds_y for part in parts]):
        _project_ahead(groups, shared, parts)
        return
    if shared is not None:
        _project(shared, _sharing(groups))
    for group in groups:
        if group.get("constraint") is not None:
            _project(group["constraint"], [group])


def check_constraint(owner: str, constraint: Any) -> Any:
    """Return the constraint; raise TypeError unless it is one, ValueError if it does not fit a shard."""
    if isinstance(constraint, type) or not (constraint is None or callable(getattr(constraint, "project_", None))):
        given = f"the class {constraint.__name__}" if isinstance(constraint, type) else f"a {type(constraint).__name__}"
        raise TypeError(f"{owner}: constraint is {given}, but must be an object such as polyak.L2Ball(100.0), or None.")
    if needs_whole(constraint) and is_shard_of_zero():
        raise ValueError(f"{owner}: {type(constraint).__name__} {PIECES}")
    return constraint


def check_fit(self: Any) -> None:
    """Raise ValueError or TypeError, before anything moves, unless every constraint fits its parameters.

    A frozen parameter that may move, and for which its constraint does not hold, is warned about once.
    """
    groups, shared = self.param_groups, self._constraint
    own = [(group["constraint"], [group]) for group in groups if group.get("constraint") is not None]
    for constraint, members in [*own, *([] if shared is None else [(shared, _sharing(groups))])]:
        moved = [p for group in members for p in group["params"]]
        params = constrained(moved)
        if params and hasattr(constraint, "check"):  # a constraint needs no more than `project_`
            constraint.check(params)
        if len(params) < len(moved) and any(p.grad is not None and is_frozen(p) for p in moved):
            self._advice.give(
                "frozen",
                f"a parameter with requires_grad=False has a gradient, so that a step may move it, but the constraint "
                f"{type(constraint).__name__} does not hold for it: set its .grad to None to leave it where it is, or "
                "call requires_grad_() to constrain it.",
            )


def _project_ahead(groups: Sequence[Group], shared: Constraint | None, parts: Sequence[Part]) -> None:
    """Project z = y + ahead·v, where the parameters hold y; x and y follow as averages of such points.

    What has no gradient in this step has a z, too.
    """
    is_free = shared is None and all([group.get("constraint") is None for group in groups])
    if is_free or not any([part.params for part in parts]):  # without a gradient nothing has moved
        return
    before = []
    for part in parts:
        having = [p for p in part.group["params"] if MOMENTUM in part.state.get(p, {})]
        x, v = [local_real_view(p) for p in having], [local_real_view(part.state[p][MOMENTUM]) for p in having]
        y = [tensor.clone() for tensor in x]
        add_(x, v, part.ahead, foreach=part.group["foreach"])
        before.append((x, v, y, [tensor.clone() for tensor in x]))
    project(groups, shared)
    for part, (x, v, y, z) in zip(parts, before, strict=True):
        moved = [new - old for new, old in zip(x, z, strict=True)]
        if part.skip is not None:
            moved = [tensor.masked_fill(send(part.skip, tensor), 0.0) for tensor in moved]
        assign_(x, y)
        add_(x, moved, 1.0 - part.ahead, foreach=part.group["foreach"])
        add_(v, moved, 1.0, foreach=part.group["foreach"])


def _project(constraint: Constraint, groups: Sequence[Group]) -> None:
    if isinstance(constraint, L2Ball):  # measured as in a step, so that a projected point stays as it is
        parts = _parts(groups)
        if parts:
            constraint.shrink_(parts, squares_of(parts))
        return
    params = constrained([p for group in groups for p in group["params"]])
    if params:
        constraint.project_(params)


def squares_of(parts: Sequence[Part]) -> list[Any]:
    """Return what adds up to the ‖x‖² of all parts; one message carries it if all are sharded."""
    if all([part.sharded for part in parts]):
        return [squares_together(parts, "x")]
    return [part.sum_squares(part.x) for part in parts]


def _sharing(groups: Sequence[Group]) -> list[Group]:
    """Return the groups that the optimizer's own constraint holds for."""
    return [group for group in groups if "constraint" not in group]


def _parts(groups: Sequence[Group]) -> list[Part]:
    params = [constrained(group["params"]) for group in groups]
    return [whole(group, own) for group, own in zip(groups, params, strict=True) if own]


@torch.no_grad()
def start_inside(groups: Sequence[Group], shared: Constraint | None, advice: Advice) -> Constraint | None:
    """Give relative balls their radius, then project; return the constraint that the groups share.

    The host reads the norms once, and warns of a ball that takes more than 1 % of one before it does.
    """
    _check_values(groups, shared, advice)
    for group in groups:
        if isinstance(ball := group.get("constraint"), L2Ball):
            group["constraint"] = _with_radius(ball, [group], advice)
    if isinstance(shared, L2Ball) and _sharing(groups):
        shared = _with_radius(shared, _sharing(groups), advice)
    project(groups, shared)
    reshard([p for group in groups if group.get("constraint", shared) is not None for p in group["params"]])
    return shared


def _check_values(groups: Sequence[Group], shared: Constraint | None, advice: Advice) -> None:
    """Raise ValueError if a parameter that is to be projected has no values yet."""
    for group in groups:
        constraint = group.get("constraint", shared)
        if constraint is not None and any(is_lazy(p) and p.requires_grad for p in group["params"]):
            raise ValueError(
                f"{advice.owner}: {type(constraint).__name__} needs the values of all parameters, but those of a lazy "
                "module have none yet: run a batch through the model before you construct the optimizer."
            )


CONSTRUCTED = (
    "at construction, which can ruin a model: write L2Ball(relative=1.5) for 1.5 times their norm, or a larger radius."
)
ADDED = (
    "as a group is added, since the ball is relative to the norm of the groups before it, which can ruin a model: give "
    "the optimizer all parameters at construction, or the group a constraint of its own."
)


def _with_radius(ball: L2Ball, groups: Sequence[Group], advice: Advice) -> L2Ball:
    """Return the ball with a radius, which its groups keep where it is relative; warn if they lie well outside."""
    norm, why = _norm(groups), ADDED if RADIUS in groups[0] else CONSTRUCTED
    if ball.radius is None:
        ball = L2Ball(_multiple(ball, norm))
        groups[0][RADIUS] = ball.radius
    for group in groups:  # one that is added later has the radius of the others
        if groups[0].get(RADIUS) == ball.radius:
            group[RADIUS] = ball.radius
    if norm is not None and ball.radius is not None and ball.radius < 0.99 * norm < math.inf:
        advice.give("ball", f"{ball} rescales the parameters from norm {norm:.4g} to {ball.radius:.4g} {why}")
    return ball


def _multiple(ball: L2Ball, norm: float | None) -> float:
    """Return the radius of a relative ball; raise ValueError if the parameters have no norm to take a multiple of."""
    if norm is None:
        raise ValueError(f"{ball} found no parameter that trains: write L2Ball(radius).")
    radius = norm * (ball.relative or 0.0)
    if not 0 < radius < math.inf:
        values = f"their norm is {norm:.4g}" if norm == norm else "their values are NaN or on the meta device"
        raise ValueError(f"{ball} needs parameters of a finite norm > 0, but {values}: write L2Ball(radius).")
    return radius


def _norm(groups: Sequence[Group]) -> float | None:
    """Return ‖x‖₂ of what is not frozen: NaN on the meta device, None if everything is."""
    parts = _parts(groups)
    if not parts:
        return None
    square = add_up(squares_of(parts), parts[0].group["step_size"])
    return math.nan if isinstance(square, torch.Tensor) and square.is_meta else math.sqrt(number(square))


def keep_constraints(optimizer: dict[str, Any], loaded: dict[str, Any]) -> None:
    """Give the groups that a state holds the constraints of those that they replace.

    A ball that was relative has the radius that the state holds, if it holds one.
    """
    if "param_groups" not in optimizer:
        return  # it is being unpickled
    for group, new in zip(optimizer["param_groups"], loaded["param_groups"], strict=False):
        new.pop("constraint", None)
        if "constraint" in group:
            new["constraint"] = group["constraint"]
        radius = new.pop(RADIUS, None)
        if RADIUS not in group:
            continue
        new[RADIUS] = group[RADIUS] if radius is None else radius
        place, name = (new, "constraint") if "constraint" in group else (loaded, "_constraint")
        place[name] = _resized((group if place is new else optimizer)[name], group[RADIUS], new[RADIUS])


def take_radii(self: Any, radii: Sequence[float | None]) -> None:
    """Give the balls that were relative these radii, one for each group."""
    for group, radius in zip(self.param_groups, radii, strict=True):
        if RADIUS in group and radius is not None:
            before, group[RADIUS] = group[RADIUS], radius
            if "constraint" in group:
                group["constraint"] = _resized(group["constraint"], before, radius)
            else:
                self._constraint = _resized(self._constraint, before, radius)


def _resized(constraint: Constraint | None, before: float, radius: float) -> Constraint | None:
    """Return the ball that had one radius with another; a constraint that has replaced it stays."""
    return L2Ball(radius) if constraint == L2Ball(before) else constraint
