"""What every constraint is, and the checks they share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor

from .._vector import Vector


class Constraint(ABC):
    """A closed convex set Ω of parameter vectors."""

    @abstractmethod
    def project_(self, params: Sequence[Tensor]) -> None:
        """Replace the parameters by the nearest point of the set: x ← Π_Ω(x)."""


def check_size(owner: str, name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{owner}: {name}={value!r} is not allowed, it must be a finite number > 0.")


def real_only(owner: str, params: Sequence[Tensor]) -> Vector:
    if any(p.is_complex() for p in params):
        raise TypeError(f"{owner} constrains real parameters, but one is complex: use L2Ball, or torch.view_as_real.")
    return list(params)
