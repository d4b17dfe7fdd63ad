"""What a step measures and what it leaves to read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._distributed import send
from ._vector import Vector, scalar_dtype

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

    def of(self, group: Group, lower_bound: Tensor | None) -> Line:
        """Return the line as one group sees it: on its device, above the call's bound or else the group's own."""
        scalar = group["step_size"]
        bound = group["lower_bound"] if lower_bound is None else send(lower_bound, scalar)
        return Line(send(self.value, scalar), send(self.slope, scalar), bound)


class Block(NamedTuple):
    """The parameters of one group that have a gradient, and their local pieces as vectors of real tensors."""

    group: Group
    params: list[Tensor]
    x: Vector
    g: Vector
    v: Vector


def place_scalars(groups: list[Group], scalars: Callable[[Group], dict[str, float]]) -> None:
    """Keep every group's scalars on the device of its parameters, in one type that is float32 or wider."""
    dtype = scalar_dtype([p for group in groups for p in group["params"]])
    for group in groups:
        device = group["params"][0].device if group["params"] else None
        for name, first in scalars(group).items():
            kind = torch.int64 if name == "skipped_steps" else dtype
            group[name] = torch.as_tensor(group.get(name, first), dtype=kind, device=device)
        if isinstance(group["lr"], Tensor):
            group["lr"] = group["lr"].reshape(())


class LastStep(NamedTuple):
    """What one step did to one parameter group; every field is a 0-dim tensor on the device."""

    loss: Tensor
    grad_sq_norm: Tensor
    ratio: Tensor
    step_size: Tensor
    capped: Tensor
    skipped: Tensor
    skipped_steps: Tensor
