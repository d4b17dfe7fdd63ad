"""What a step measures and what it leaves to read."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from ._loss import as_scalar
from ._vector import Vector

Group = dict[str, Any]


class Line(NamedTuple):
    """The loss along a direction u: f(x − γu) ≈ value − γ·slope, known to stay above lower_bound."""

    value: Tensor
    slope: Tensor
    lower_bound: Tensor | float = 0.0

    @property
    def gap(self) -> Tensor:
        """(value − lower_bound)₊, how far the loss can still fall."""
        return (self.value - self.lower_bound).clamp(min=0.0)

    def of(self, group: Group, lower_bound: Tensor | float | None) -> Line:
        """Return the line as one group sees it: on its device, above the call's bound or else the group's own."""
        scalar, bound = group["step_size"], group["lower_bound"] if lower_bound is None else lower_bound
        value, slope = (t.to(scalar.device, non_blocking=True) for t in (self.value, self.slope))
        return Line(value, slope, as_scalar(bound, scalar.dtype, scalar.device) if isinstance(bound, Tensor) else bound)


class Block(NamedTuple):
    """The parameters of one group that have a gradient, as vectors of real tensors."""

    group: Group
    x: Vector
    g: Vector
    v: Vector


class LastStep(NamedTuple):
    """What one step did to one parameter group; every field is a 0-dim tensor on the device."""

    loss: Tensor
    grad_sq_norm: Tensor
    ratio: Tensor
    step_size: Tensor
    capped: Tensor
    skipped: Tensor
    skipped_steps: Tensor
