"""The backend of the CPU: PyTorch's operations with plain numbers as scalars.

By default they take pieces that fit the cache, with `foreach` given all tensors at once or one by one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast, final

import torch
from torch import Tensor

from .chunks import SHARED, SMALL, Vector, pieces_of_one_type
from .general import as_general
from .moves import MOMENTUM, MOVES, NO_DECAY, Vectors, dot_of_piece, squares_of_piece
from .scalars import LARGEST, number
from .vector import AVERAGE, SQUARES, Products, average_, average_squares_, divided

TINY = 2.0**-20  # 1 − b keeps 32 digits of a larger b


@final
class Pieces(Vectors):
    """A group's plain tensors of one type, float32 or float64; `General` documents the interface."""

    numbers, sharded, has_float16 = True, False, False

    def __init__(
        self, group: dict[str, Any], params: Sequence[Tensor], x: Vector, g: Vector, buffers: Mapping[str, Vector]
    ) -> None:
        self.group, self.params, self.x, self.g, self.u, self.buffers = group, params, x, g, g, buffers
        self.dtype = x[0].dtype
        self.largest, self.rounding = LARGEST[self.dtype], 4 * torch.finfo(self.dtype).eps
        self._sizes = [*map(Tensor.numel, x)]
        self._fits_one, self._foreach = sum(self._sizes) <= SHARED, group["foreach"]

    def sum_squares(self, x: Vector) -> float:
        """Return ‖x‖²."""
        found = 0.0
        for (piece,) in self._cut(x, whole=True):
            found += sum(map(Tensor.item, squares_of_piece(piece, self.dtype)))
        return found

    def dot(self, x: Vector, y: Vector) -> float:
        """Return ⟨x, y⟩."""
        return sum([dot_of_piece(a, b) for a, b in self._cut(x, y)])

    def average_(self, beta: Any, beta2: Any = None, with_x: bool = False, deferred: bool = False) -> Products:
        """Average the gradients by β and their squares by β₂, and measure, all while a cache holds the piece."""
        u, s = self.g if beta is None else self.buffers[AVERAGE], self.g if beta2 is None else self.buffers[SQUARES]
        gradient_dot_x = direction_dot_x = squares = 0.0
        for x, g, u_piece, s_piece in self._cut_as_asked(self.x, self.g, u, s):
            if beta is not None:
                average_(u_piece, g, number(beta))
            if beta2 is not None:
                average_squares_(s_piece, g, beta2)
            if with_x:
                gradient_dot_x += dot_of_piece(g, x)
                direction_dot_x += dot_of_piece(u_piece, x)
            squares += self._dual_squares(u_piece, s_piece)
        return Products(gradient_dot_x, direction_dot_x, squares)

    def _dual_squares(self, u: Vector, s: Vector) -> float:
        if self.preconditioner is None:
            return sum(map(Tensor.item, squares_of_piece(u, self.dtype)))
        return dot_of_piece(u, divided(u, s, self.preconditioner))

    def move(self, gamma: Any, keep: Any, skip: Any, measured: bool) -> float:
        """Move the parameters by γ along −u; return their new ‖x‖², or 0 if it is not `measured`."""
        if self.preconditioner or self.signed or self.decay is not NO_DECAY:
            return cast(float, as_general(self).move(gamma, keep, None, measured))
        move, found = MOVES[self.form], 0.0
        for x, u, v in self._cut_as_asked(self.x, self.u, self.buffers.get(MOMENTUM, self.x)):
            move(self, x, u, v, gamma, self.mu)
            if measured and not self._foreach:  # right after the move, while a cache still holds the piece
                found += sum(map(Tensor.item, squares_of_piece(x, self.dtype)))
        return self.sum_squares(self.x) if measured and self._foreach else found

    def scale_(self, x: Vector, a: Any) -> None:
        """x ← a·x."""
        factor = torch.as_tensor(a, dtype=self.dtype)  # thrice as fast as a number
        for (piece,) in self._cut(x, whole=True):
            torch._foreach_mul_(piece, factor)

    def axpy_(self, x: Vector, y: Vector, a: float) -> None:
        """x ← x + a·y, for one piece."""
        if len(x) == 1:
            x[0].add_(y[0], alpha=a)
        else:
            torch._foreach_add_(x, y, alpha=a)

    def accumulate_(self, x: Vector, u: Vector, v: Vector, mu: float, b: float, w: float) -> None:
        """v ← μv + b·u;  x ← x + w·v, for one piece."""
        if len(x) == 1 and mu and self._sgd_takes(x[0], u[0], v[0], b):
            torch._fused_sgd_(
                x, u, v, momentum=mu, dampening=1.0 - b, lr=-w, weight_decay=0.0, nesterov=False, maximize=False,
                is_first_step=False,
            )  # fmt: skip
            return
        torch._foreach_mul_(v, torch.full((), mu, dtype=self.dtype))
        self.axpy_(v, u, b)
        self.axpy_(x, v, w)

    def _sgd_takes(self, x: Tensor, u: Tensor, v: Tensor, b: float) -> bool:
        """Return whether a kernel of PyTorch's SGD may do it: it takes b as 1 − (1 − b), which float32 does not notice.

        It wakes all threads for any tensor, for which a small one is done too soon.
        """
        if self.dtype != torch.float32 or abs(b) < TINY or x.numel() < SMALL or self._foreach is not None:
            return False
        if not x.shape == u.shape == v.shape:  # which that kernel does not check
            return False
        return x.is_contiguous() and u.is_contiguous() and v.is_contiguous()

    def _cut_as_asked(self, *vectors: Vector) -> Iterable[tuple[Vector, ...]]:
        if self._foreach is None:
            return self._cut(*vectors)
        return (
            [vectors] if self._foreach else [tuple([[tensor] for tensor in row]) for row in zip(*vectors, strict=True)]
        )

    def _cut(self, *vectors: Vector, whole: bool = False) -> Iterable[tuple[Vector, ...]]:
        return [vectors] if self._fits_one else pieces_of_one_type(vectors, self._sizes, whole)
