"""fused=True on the CPU: the kernels of `cpu_kernels.c` measure and move a group's vectors in one pass."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from ctypes import byref
from typing import Any, NamedTuple, cast, final

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from .chunks import Packed, Vector
from .cpu_build import Pass, kernels
from .general import as_general
from .moves import MOMENTUM, Form, Vectors
from .scalars import LARGEST, Scalar, number
from .vector import AVERAGE, SQUARES, Products, dot, sum_squares

MEASURE, SCALE, TRIAL, STORE = 0, 1, 6, 7  # the other operations are the forms of a move


class Averages(NamedTuple):
    """The averages that a pass takes: the columns of their buffers, or 0, and the coefficients."""

    d: int = 0
    s: int = 0
    beta: float = 1.0
    beta2: float = 1.0
    root: float = 1.0
    eps: float = 0.0


NO_AVERAGES = Averages()


@final
class CpuKernels(Vectors):
    """A group's vectors of one type, float32 or float64, in a table of addresses; `General` documents the interface."""

    TYPES = ({torch.float32}, {torch.float64})
    numbers, sharded, has_float16, measures_norm = True, False, False, True
    can_be_kept = True

    x: Packed

    def __init__(
        self, group: dict[str, Any], params: Sequence[Tensor], x: Packed, g: Packed, buffers: Mapping[str, Packed]
    ) -> None:
        self.group, self.params, self.x, self.g, self.u, self.buffers = group, params, x, g, g, buffers
        self.table = x.table
        self.largest, self.rounding = LARGEST[x.dtype], 4 * torch.finfo(x.dtype).eps
        self._run, self._averages = kernels(x.dtype), NO_AVERAGES
        self._one = Pass(count=len(x), table=self.table.numbers.buffer_info()[0])

    def take_gradients(self, g: Vector) -> None:
        """Take the gradients of another step, which lie in memory as those did that the part was made with."""
        count, packed = len(g), Packed(g)
        packed.table, packed.column, packed.dtype = self.table, 2, self.x.dtype
        self.table.numbers[2 * count : 3 * count] = array("q", [*map(Tensor.data_ptr, g)])
        self.g = self.u = packed

    def sum_squares(self, x: Vector) -> Scalar:
        """Return ‖x‖²."""
        if self.sharded or getattr(x, "table", None) is not self.table:
            return number(sum_squares(x, self.params))
        return self._pass(MEASURE, x, measured=True)

    def dot(self, x: Vector, y: Vector) -> Scalar:
        """Return ⟨x, y⟩."""
        if self.sharded or any([getattr(vector, "table", None) is not self.table for vector in (x, y)]):
            return number(dot(x, y, self.params))
        self._pass(TRIAL, x, y)
        return cast(float, self._one.more[1])

    def average_(self, beta: Any, beta2: Any = None, with_x: bool = False, deferred: bool = False) -> Products:
        """Average the gradients by β and their squares by β₂, and measure; the move stores what is `deferred`."""
        d, s, divisor = self.buffers.get(AVERAGE), self.buffers.get(SQUARES), self.preconditioner
        without_kernel = (beta2 is None) != (divisor is None) or (beta is None and with_x)
        if self.sharded or not deferred or without_kernel:
            return as_general(self).average_(beta, beta2, with_x)
        columns = 0 if beta is None else cast(Packed, d).column, 0 if beta2 is None else cast(Packed, s).column
        root, eps = (math.sqrt(number(divisor.correction)), divisor.eps) if divisor else (1.0, 0.0)
        self._averages = Averages(*columns, 1.0 if beta is None else number(beta), beta2 or 0.0, root, eps)
        squares = self._pass(TRIAL, self.x, self.g, averages=self._averages)
        self.gradient_squares, gradient_dot_x, direction_dot_x = self._one.more
        return Products(gradient_dot_x, direction_dot_x, squares)

    def store_averages(self) -> None:
        """Store the averages that a move would have stored."""
        if self._averages is not NO_AVERAGES:
            self._pass(STORE, self.x, self.g, averages=self._averages)
            self.forget_averages()

    def forget_averages(self) -> None:
        """Leave the averages as they are."""
        self._averages = NO_AVERAGES

    def move(self, gamma: Any, keep: Any, skip: Any, measured: bool) -> float:
        """Move the parameters by γ along −u; return their new ‖x‖², or 0 if it is not `measured`."""
        if self._averages is NO_AVERAGES:
            u, has_kernel = self.u, self.preconditioner is None and getattr(self.u, "table", None) is self.table
            has_kernel = has_kernel and not self.signed and self.form is not Form.SCHEDULE_FREE
        else:
            u, has_kernel = self.g, self._moves_along_averages()
        if not has_kernel:
            self.store_averages()
            return cast(float, as_general(self).move(gamma, keep, skip, measured))
        squares = self._pass(self.form, self.x, u, self.buffers.get(MOMENTUM), gamma, measured, self._averages)
        self._averages = NO_AVERAGES
        increment_version(self.x)  # no graph holds a momentum buffer
        return squares

    def _moves_along_averages(self) -> bool:
        """Return whether a kernel makes the move and stores the averages in one pass."""
        averaged = self._averages.d != 0
        along = self.u is (self.buffers[AVERAGE] if averaged else self.g)
        return along and (self.form is Form.PLAIN or (self.form is Form.HEAVY_BALL and not averaged))

    def scale_(self, x: Vector, a: Any) -> None:
        """x ← a·x."""
        self._pass(SCALE, x, gamma=number(a))
        increment_version(x)

    def _pass(
        self, form: int, x: Any, u: Any = None, v: Any = None, gamma: float = 0.0, measured: bool = False,
        averages: Averages = NO_AVERAGES,
    ) -> float:  # fmt: skip
        """Make one pass over the memory."""
        one = self._one
        one.form, one.measured, one.threads = form, measured, torch.get_num_threads()
        one.x, one.u, one.v = x.column, (u or x).column, (v or x).column
        one.gamma, one.mu, one.decay = gamma, self.mu, self.decay
        one.d, one.s, one.beta, one.beta2, one.root, one.eps = averages
        total: float = self._run(byref(one))
        if total < 0:
            raise MemoryError("There is no memory for a step's sums, 32 bytes for every 8192 parameters.")
        return total
