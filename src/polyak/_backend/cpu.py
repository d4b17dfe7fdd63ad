"""fused=True on the CPU: the kernels of `cpu_kernels.c` measure and move a group's vectors in one pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ctypes import byref
from typing import Any, cast, final

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from .chunks import Packed, Vector
from .cpu_build import Pass, kernels
from .general import as_general
from .moves import MOMENTUM, NO_DECAY, Form, Vectors
from .scalars import LARGEST, Scalar, number
from .vector import Products, dot, sum_squares

MEASURE, SCALE = 0, 1  # the other operations are the forms of a move


@final
class CpuKernels(Vectors):
    """A group's vectors of one type, float32 or float64, in a table of addresses; `General` documents the interface."""

    TYPES = ({torch.float32}, {torch.float64})
    numbers, sharded, has_float16 = True, False, False

    def __init__(
        self, group: dict[str, Any], params: Sequence[Tensor], x: Packed, g: Packed, buffers: Mapping[str, Packed]
    ) -> None:
        self.group, self.params, self.x, self.g, self.u, self.buffers = group, params, x, g, g, buffers
        self.table = x.table
        self.largest, self.rounding = LARGEST[x.dtype], 4 * torch.finfo(x.dtype).eps
        self._run = kernels(x.dtype)

    def sum_squares(self, x: Vector) -> Scalar:
        """Return ‖x‖²."""
        if self.sharded or getattr(x, "table", None) is not self.table:
            return number(sum_squares(x, self.params))
        return self._pass(MEASURE, x, measured=True)

    def dot(self, x: Vector, y: Vector) -> Scalar:
        """Return ⟨x, y⟩."""
        return number(dot(x, y, self.params))

    def average_(self, beta: Any, beta2: Any = None, with_x: bool = False) -> Products:
        """Average the gradients by β and their squares by β₂, and measure."""
        return as_general(self).average_(beta, beta2, with_x)

    def dual_squares(self, u: Vector) -> Scalar:
        """Return ⟨u, D⁻¹u⟩."""
        return as_general(self).dual_squares(u)

    def move(self, gamma: Any, keep: Any, skip: Any, measured: bool) -> float:
        """Move the parameters by γ along −u; return their new ‖x‖², or 0 if it is not `measured`."""
        v = self.buffers.get(MOMENTUM)
        without_kernel = self.preconditioner or self.decay is not NO_DECAY or self.form is Form.HEAVY_BALL
        if getattr(self.u, "table", None) is not self.table or without_kernel:
            return cast(float, as_general(self).move(gamma, keep, skip, measured))
        found = self._pass(self.form, self.x, self.u, v, gamma, self.mu, measured)
        increment_version(self.x)  # no graph holds a momentum buffer
        return found

    def scale_(self, x: Vector, a: Any) -> None:
        """x ← a·x."""
        self._pass(SCALE, x, gamma=number(a))
        increment_version(x)

    def _pass(
        self, form: int, x: Any, u: Any = None, v: Any = None, gamma: float = 0.0, mu: float = 0.0,
        measured: bool = False,
    ) -> float:  # fmt: skip
        """Make one pass over the memory."""
        table, columns = self.table.numbers.buffer_info()[0], (x.column, (u or x).column, (v or x).column)
        numbers = (form, measured, torch.get_num_threads(), len(x), table, *columns, gamma, mu)
        found: float = self._run(byref(Pass(*numbers)))
        if found < 0:
            raise MemoryError("There is no memory for a step's sums, 8 bytes for every 8192 parameters.")
        return found
