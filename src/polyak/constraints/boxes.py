"""Boxes: bounds on every coordinate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from .._backend.scalars import is_number, quoted
from ._base import Constraint, check_size, real_only


@final
@dataclass(frozen=True)
class Box(Constraint):
    """The box low ≤ x ≤ high, for every coordinate.

    Args:
        low: the smallest value, a number or -math.inf.
        high: the largest value, a number > low or math.inf.

    Raises:
        ValueError: low is not below high.
        TypeError: a parameter is complex.

    Example:
        >>> import torch, polyak
        >>> x = torch.tensor([-3.0, 0.2])
        >>> polyak.Box(-1.0, 1.0).project_([x])
        >>> x
        tensor([-1.0000,  0.2000])
    """

    coordinatewise: ClassVar[bool] = True
    takes_complex: ClassVar[bool] = False
    low: float
    high: float

    def __post_init__(self) -> None:
        if not (is_number(self.low) and is_number(self.high) and self.low < self.high):
            raise ValueError(
                f"Box({quoted(self.low)}, {quoted(self.high)}) is not allowed, low must be a number below high."
            )

    def project_(self, params: Sequence[Tensor]) -> None:
        """x ← min{max{x, low}, high}."""
        _clamp_(real_only(self, params), self.low, self.high)


@final
@dataclass(frozen=True)
class LInfBall(Constraint):
    """The ball ‖x‖_∞ ≤ radius, that is the box −radius ≤ x ≤ radius.

    Args:
        radius: the largest absolute value, a finite number > 0.

    Raises:
        ValueError: the radius is not a finite number > 0.
        TypeError: a parameter is complex.

    Example:
        >>> import torch, polyak
        >>> x = torch.tensor([-3.0, 0.2])
        >>> polyak.LInfBall(0.5).project_([x])
        >>> x
        tensor([-0.5000,  0.2000])
    """

    coordinatewise: ClassVar[bool] = True
    takes_complex: ClassVar[bool] = False
    radius: float

    def __post_init__(self) -> None:
        check_size("LInfBall", "radius", self.radius)

    def project_(self, params: Sequence[Tensor]) -> None:
        """x ← min{max{x, −radius}, radius}."""
        _clamp_(real_only(self, params), -self.radius, self.radius)


@final
@dataclass(frozen=True)
class NonNegative(Constraint):
    """The orthant x ≥ 0.

    Raises:
        TypeError: a parameter is complex.

    Example:
        >>> import torch, polyak
        >>> x = torch.tensor([-3.0, 0.5])
        >>> polyak.NonNegative().project_([x])
        >>> x
        tensor([0.0000, 0.5000])
    """

    coordinatewise: ClassVar[bool] = True
    takes_complex: ClassVar[bool] = False

    def project_(self, params: Sequence[Tensor]) -> None:
        """x ← x₊."""
        _clamp_(real_only(self, params), 0.0, math.inf)


def _clamp_(x: Sequence[Tensor], low: float, high: float) -> None:
    """x ← min{max{x, low}, high}."""
    for tensor in x:
        tensor.clamp_(low, high)
