"""The default backend on the CPU: PyTorch's operations on pieces that fit the cache, with plain numbers as scalars."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors

from .chunks import SHARED, SMALL, Vector, flat_views, pieces_of_one_type
from .moves import MOVES, Form
from .scalars import LARGEST

ROW = 1 << 12  # numbers of one sum: torch keeps few accumulators on the CPU, so that a long float32 sum loses digits
SHORT = 1 << 8  # and a single one where the numbers do not lie side by side
TINY = 2.0**-20  # 1 − b keeps 32 digits of a larger b


@final
class Pieces:
    """A group's plain tensors of one type, float32 or float64; `General` documents the interface."""

    numbers, sharded, has_float16 = True, False, False

    def __init__(
        self, group: dict[str, Any], params: Sequence[Tensor], x: Vector, g: Vector, buffers: Mapping[str, Vector]
    ) -> None:
        self.group, self.params, self.x, self.g, self.u, self.buffers = group, params, x, g, g, buffers
        self.form = Form.PLAIN
        self.mu: Any = 0.0
        self.dtype = x[0].dtype
        self.largest, self.rounding = LARGEST[self.dtype], 4 * torch.finfo(self.dtype).eps
        self._sizes = [*map(Tensor.numel, x)]
        self._fits_one = sum(self._sizes) <= SHARED

    def sum_squares(self, x: Vector) -> float:
        """Return ‖x‖²."""
        found = 0.0
        for (piece,) in self._cut(x, whole=True):
            found += sum(map(Tensor.item, squares_of_piece(piece, self.dtype)))
        return found

    def dot(self, x: Vector, y: Vector) -> float:
        """Return ⟨x, y⟩."""
        return sum([torch.dot(a.reshape(-1), b.reshape(-1)).item() for a, b in zip(x, y, strict=True)])

    def move(self, gamma: Any, keep: Any, skip: Any, measured: bool) -> float:
        """Move the parameters by γ along −u; return their new ‖x‖², or 0 if it is not `measured`."""
        move, found = MOVES[self.form], 0.0
        for x, u, v in self._cut(self.x, self.u, self.buffers.get("momentum_buffer", self.x)):
            move(self, x, u, v, gamma, self.mu)
            if measured:  # right after the move, while a cache still holds the piece
                found += sum(map(Tensor.item, squares_of_piece(x, self.dtype)))
        return found

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
        if len(x) == 1 and self._sgd_takes(x[0], u[0], v[0], b):
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
        if self.dtype != torch.float32 or abs(b) < TINY or x.numel() < SMALL:
            return False
        return x.is_contiguous() and u.is_contiguous() and v.is_contiguous()

    def _cut(self, *vectors: Vector, whole: bool = False) -> Iterable[tuple[Vector, ...]]:
        return [vectors] if self._fits_one else pieces_of_one_type(vectors, self._sizes, whole)


def squares_of_piece(piece: Vector, dtype: torch.dtype) -> Vector:
    """Return numbers whose sum is ‖x‖², for one chunk on the CPU, summed in short rows, then over the rows' norms."""
    x: Tensor = piece[0] if len(piece) == 1 else _flatten_dense_tensors(piece)
    if not x.is_contiguous():
        views = flat_views((x,))
        if views is None:
            return _squares_with_gaps(x, dtype)
        (x,) = views
    x = x.view(-1)
    rows, rest = divmod(len(x), ROW)
    if rows < 4:
        x = x if x.dtype == dtype else x.to(dtype)
        return [torch.dot(x, x)]
    norms = torch.linalg.vector_norm(x[: rows * ROW].view(rows, ROW), dim=1, dtype=dtype)
    found = [torch.dot(norms, norms)] if rows < ROW else squares_of_piece([norms], dtype)
    return [*found, *squares_of_piece([x[-rest:]], dtype)] if rest else found


def _squares_with_gaps(x: Tensor, dtype: torch.dtype) -> Vector:
    """Do the same for numbers that are repeated, or do not lie side by side, without a copy of them."""
    repeated = math.prod([size for size, stride in zip(x.shape, x.stride(), strict=True) if stride == 0])
    if repeated != 1:
        once = x[tuple([slice(None) if stride else 0 for stride in x.stride()])]
        return [repeated * part for part in squares_of_piece([once], dtype)]
    x = x.movedim(min(range(x.dim()), key=x.stride().__getitem__), -1)
    rows, rest = divmod(x.shape[-1], SHORT)
    parts = [x[..., : rows * SHORT].view(*x.shape[:-1], rows, SHORT)] if rows else []
    parts += [x[..., rows * SHORT :]] if rest else []
    return [
        square
        for part in parts
        for square in squares_of_piece([torch.linalg.vector_norm(part, dim=-1, dtype=dtype)], dtype)
    ]
