"""fused=True on the CPU: which tensors the compiled kernels take, and how they are started."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from ctypes import byref
from itertools import chain
from operator import attrgetter
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from ._build import REALS, Pass, kernels
from ._chunks import Row, Vector, flat
from ._distributed import PLAIN

DTYPE, IS_CPU = attrgetter("dtype"), attrgetter("is_cpu")
FORMS = {"measure": 0, "scale": 1, "plain": 2, "nesterov": 3, "adjusted": 4}


def squares(x: Vector) -> tuple[list[Tensor], Vector]:
    """Return numbers whose sum is ‖x‖² for the tensors a kernel can take, and the other tensors."""
    kinds, (others,) = _by_kind([x])
    return [kind.measured("measure") for kind in kinds], others


def scale_(x: Vector, a: float) -> Vector:
    """x ← a·x for the tensors a kernel can take; return the others."""
    kinds, (others,) = _by_kind([x])
    for kind in kinds:
        kind.run("scale", a)
    increment_version(x)
    return others


def move(
    form: str, rows: Sequence[Vector], gamma: float, skip: Tensor | None, mu: float, measured: bool
) -> tuple[list[Tensor], Sequence[Vector]]:
    """Move what the kernels can move; return numbers whose sum is its new ‖x‖², if that is measured, and the rest."""
    kinds, others = _by_kind(rows)
    found = []
    for kind in kinds:
        if measured:
            found.append(kind.measured(form, gamma, mu))
        else:
            kind.run(form, gamma, mu)
    for vector in (rows[0], rows[2]):
        increment_version(vector)
    return found, others


class _Kind(NamedTuple):
    """Vectors of one type, whose tensors lie in memory alike and without gaps."""

    dtype: torch.dtype
    rows: Sequence[Vector]

    def measured(self, form: str, gamma: float = 0.0, mu: float = 0.0) -> Tensor:
        """Make a pass and return ‖x‖² after it."""
        return torch.scalar_tensor(self.run(form, gamma, mu, True), dtype=self.dtype)

    def run(self, form: str, gamma: float = 0.0, mu: float = 0.0, measured: bool = False) -> float:
        """Make a pass; return ‖x‖² after it, or 0 if it is not measured."""
        x = self.rows[0]
        table = array("q", [*map(Tensor.numel, x), *map(Tensor.data_ptr, chain(*self.rows))])
        numbers = (FORMS[form], measured, torch.get_num_threads(), len(x), table.buffer_info()[0], gamma, mu)
        found: float = kernels(self.dtype)(byref(Pass(*numbers)))
        if found < 0:
            raise MemoryError("There is no memory for a step's sums, 8 bytes for every 8192 parameters.")
        return found


def _by_kind(rows: Sequence[Vector]) -> tuple[list[_Kind], Sequence[Vector]]:
    """Return the rows that a kernel can take, by type, and the other rows."""
    everything = [*chain(*rows)]
    if _are_simple(everything) and all(map(Tensor.is_contiguous, everything)):
        return [_Kind(everything[0].dtype, rows)], [[] for _ in rows]
    kinds: dict[torch.dtype, list[Row]] = {}
    others: list[Row] = []
    for row in zip(*rows, strict=True):
        views = flat(row) if _are_simple(row) else None
        if views is None:
            others.append(row)
        else:
            kinds.setdefault(row[0].dtype, []).append(views)
    found = [_Kind(dtype, _columns(taken, rows)) for dtype, taken in kinds.items()]
    return found, _columns(others, rows)


def _are_simple(tensors: Sequence[Tensor]) -> bool:
    """Return whether all tensors are plain numbers of one type in the memory of the CPU."""
    types = {*map(DTYPE, tensors)}
    if len(types) != 1 or not types <= REALS.keys() or not {*map(type, tensors)} <= PLAIN:
        return False
    return all(map(IS_CPU, tensors)) and not any(map(Tensor.is_neg, tensors))


def _columns(taken: Sequence[Row], rows: Sequence[Vector]) -> Sequence[Vector]:
    return [[row[column] for row in taken] for column in range(len(rows))]
