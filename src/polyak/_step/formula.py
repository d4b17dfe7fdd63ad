"""How a method's formula is evaluated: on plain numbers where they may be read, on 0-dim tensors elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from torch import Tensor

from .._backend.scalars import Scalar, number
from .line import Group, Line

StepSize = Callable[[Line, Group], tuple[Scalar, Scalar]]


class Found(NamedTuple):
    """The uncapped ratio and its cap, the line they came from, and the group with what the formula has left in it."""

    ratio: Scalar
    cap: Scalar
    line: Line
    group: Group


def evaluate(step_size: StepSize, takes_numbers: bool, memory: Iterable[str], line: Line, group: Group) -> Found:
    """Evaluate a formula on a copy of the group, so that nothing is remembered before the step is known to be sane."""
    seen, numbers = dict(group), not isinstance(line.value, Tensor)
    if numbers and takes_numbers:
        for name in (*memory, "lr"):
            seen[name] = number(seen[name])
        try:
            return Found(*step_size(line, seen), line, seen)
        except ZeroDivisionError:  # tensors know inf and NaN
            seen = dict(group)
    ratio, cap = step_size(line.tensors(group["step_size"]), seen)
    return Found(number(ratio) if numbers else ratio, cap, line, seen)
