"""fused=True on CUDA: which types the Triton kernels take, where they find the vectors, and how they are started."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from itertools import combinations
from typing import Any, NamedTuple, cast, final

import torch
import triton.language as tl
from torch import Tensor
from torch.autograd.graph import increment_version

from . import cuda_kernels as kernels
from .chunks import Packed, Vector
from .general import as_general
from .moves import MOMENTUM, NO_DECAY, Form, Vectors
from .scalars import Scalar, as_tensor, largest_but_float16
from .vector import AVERAGE, SQUARES, Products, dot, relative_rounding, sum_squares

TYPES = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}
KEPT = 64  # tables of addresses, and pieces of pinned memory
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}  # the roundings of the other backends, which multiply, then add


@final
class CudaKernels(Vectors):
    """A group's vectors in a table of addresses, each of one type; `General` documents the interface."""

    TYPES = tuple({*chosen} for n in (1, 2, 3, 4) for chosen in combinations(TYPES, n))
    numbers, sharded = False, False

    def __init__(
        self, group: dict[str, Any], params: Sequence[Tensor], x: Packed, g: Packed, buffers: Mapping[str, Packed]
    ) -> None:
        self.group, self.params, self.x, self.g, self.u, self.buffers = group, params, x, g, g, buffers
        self.table = x.table
        self.has_float16 = x.dtype == torch.float16
        self.largest, self.rounding = largest_but_float16({x.dtype}, group), relative_rounding(x)

    def sum_squares(self, x: Vector) -> Scalar:
        """Return ‖x‖²."""
        if self.sharded or getattr(x, "table", None) is not self.table:
            return sum_squares(x, self.params, self.group["foreach"])
        return _sums(kernels.measure, [cast(Packed, x)]).sum()

    def dot(self, x: Vector, y: Vector) -> Scalar:
        """Return ⟨x, y⟩."""
        return dot(x, y, self.params)

    def average_(self, beta: Any, beta2: Any = None, with_x: bool = False, deferred: bool = False) -> Products:
        """Average the gradients by β and their squares by β₂, and measure, unless `skip`."""
        if self.sharded or self.skip is None or (beta2 is None) != (self.preconditioner is None):
            return as_general(self).average_(beta, beta2, with_x)
        one, two = 0.0 if beta is None else beta, 0.0 if beta2 is None else beta2
        vectors = self._vectors(self.g, AVERAGE)
        coefficients = _on(vectors, one, 1.0 - one, two, 1.0 - two, *self._denominator())
        has: dict[str, Any] = {"AVERAGED": beta is not None, "SQUARED": beta2 is not None, "WITH_X": with_x}
        sums = _sums(kernels.average, vectors, self.skip.to(coefficients.device), coefficients, rows=3, **has)
        gradient_dot_x, direction_dot_x, squares = sums.view(3, -1).sum(1).unbind()
        return Products(gradient_dot_x, direction_dot_x, squares)

    def move(self, gamma: Any, keep: Any, skip: Any, measured: bool) -> Scalar | None:
        """Move the parameters by γ along −u, unless `skip`; return their new ‖x‖² if it is to be `measured`."""
        divided, decayed = self.preconditioner is not None, self.decay is not NO_DECAY
        without_kernel = self.signed or self.form is Form.SCHEDULE_FREE or (divided and SQUARES not in self.buffers)
        if getattr(self.u, "table", None) is not self.table or without_kernel:
            return as_general(self).move(gamma, keep, skip, measured)
        vectors, device = self._vectors(self.u, MOMENTUM), self.x[0].device
        given = [scalar.to(device) for scalar in (gamma, keep, skip)]
        coefficients = _on(vectors, self.decay, *self._denominator()) if decayed or divided else given[0]
        form: dict[str, Any] = {"FORM": self.form.name.lower(), "DECAYED": decayed, "DIVIDED": divided}
        sums = _sums(kernels.move, vectors, *given, coefficients, **form)
        increment_version(self.x)  # no graph holds a momentum buffer
        return sums.sum() if measured else None

    def _vectors(self, u: Vector, buffer: str) -> list[Packed]:
        """Return x, a direction, a buffer and the averaged squares; x in place of those that there are not."""
        found = (self.x, u, self.buffers.get(buffer, self.x), self.buffers.get(SQUARES, self.x))
        return [cast(Packed, vector) for vector in found]

    def _denominator(self) -> tuple[Any, float]:
        """Return the root of D's correction, and ε."""
        if self.preconditioner is None:
            return 1.0, 0.0
        return self.preconditioner.correction**0.5, self.preconditioner.eps

    def scale_(self, x: Vector, a: Any) -> None:
        """x ← a·x."""
        _run(kernels.scale, [cast(Packed, x)], a.to(x[0].device))
        increment_version(x)


def _on(vectors: Sequence[Packed], *scalars: Any) -> Tensor:
    """Return scalars on the device of vectors, in the type in which a kernel computes."""
    like = torch.zeros((), dtype=_accumulator(vectors), device=vectors[0][0].device)
    return torch.stack([as_tensor(scalar, like).to(like) for scalar in scalars])


def _sums(kernel: Any, vectors: Sequence[Packed], *arguments: Any, rows: int = 1, **constants: Any) -> Tensor:
    """Run a kernel that leaves some numbers for every span, and return these numbers."""
    place = _on_device(vectors[0])
    sums = torch.empty(rows * len(place.owner), dtype=_accumulator(vectors), device=place.owner.device)
    _run(kernel, vectors, sums, *arguments, **constants)
    return sums


def _run(kernel: Any, vectors: Sequence[Packed], *arguments: Any, **constants: Any) -> None:
    """Run a kernel with a program for every span."""
    place = _on_device(vectors[0])
    dtypes = {name: TYPES[vector.dtype] for name, vector in zip("XUVS", vectors, strict=False)}
    with _current(place.owner.device):
        kernel[(len(place.owner),)](
            place.rows[0], place.owner, place.begin, *[place.rows[vector.column] for vector in vectors], *arguments,
            **dtypes, ACC=TYPES[_accumulator(vectors)], ALIGNED=place.aligned, **constants, **OPTIONS,
        )  # fmt: skip


def _accumulator(vectors: Sequence[Packed]) -> torch.dtype:
    """Return the type in which a kernel computes: float32, or float64 for float64 tensors."""
    return torch.float64 if any(vector.dtype == torch.float64 for vector in vectors) else torch.float32


class _OnDevice(NamedTuple):
    """A table on its device, and for every span its tensor and its first number in it."""

    rows: Sequence[Tensor]
    owner: Tensor
    begin: Tensor
    aligned: bool


_uploaded: dict[tuple[tuple[int, ...], torch.device], Tensor] = {}
_spare: list[Tensor] = []
_captured: list[tuple[Tensor, ...]] = []


def _on_device(x: Packed) -> _OnDevice:
    """Return the table of a vector on the vector's device."""
    table, device = x.table, x[0].device
    if table.on_device is None:
        rows = _upload(tuple(table.numbers), device).view(-1, len(table.sizes)).unbind()
        owner, begin = spans = _spans(tuple(table.sizes), device)
        if _is_capturing(device):
            _captured.append(spans)  # a graph must find them there at every replay
        aligned = all(address % 16 == 0 for address in table.numbers[len(table.sizes) :])
        table.on_device = _OnDevice(rows, owner, begin, aligned)
    on_device: _OnDevice = table.on_device
    return on_device


@lru_cache(maxsize=64)
def _spans(sizes: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return, for every span, its tensor and its first number in it."""
    numbers = torch.tensor(sizes)
    counts = (numbers + kernels.SPAN.value - 1) // kernels.SPAN.value
    owner = torch.repeat_interleave(torch.arange(len(sizes)), counts)
    begin = torch.arange(len(owner)) - (counts.cumsum(0) - counts)[owner]
    return _send(owner, device), _send(begin, device)


def _upload(table: tuple[int, ...], device: torch.device) -> Tensor:
    """Return a table on the device; tensors that are allocated anew mostly come back to the same addresses."""
    key = (table, device)
    if key not in _uploaded or _is_capturing(device):  # what a graph uploads is there only once it is replayed
        there = _send(torch.tensor(table), device)
        if _is_capturing(device):
            return there
        _uploaded[key] = there
        if len(_uploaded) > KEPT:
            del _uploaded[next(iter(_uploaded))]
    return _uploaded[key]


def _send(numbers: Tensor, device: torch.device) -> Tensor:
    """Copy without waiting, from pinned memory; a graph reads that memory again at every replay, so it is kept."""
    if device.type == "cpu":
        return numbers
    if not _is_capturing(device):
        _spare.append(torch.empty_like(numbers, pin_memory=True))  # a capture may not allocate any
        del _spare[:-KEPT]
        return numbers.pin_memory().to(device, non_blocking=True)
    index = next(i for i, spare in enumerate(_spare) if len(spare) >= len(numbers))
    host = _spare.pop(index)[: len(numbers)].copy_(numbers)
    there = host.to(device, non_blocking=True)
    _captured.append((host, there))
    return there


def _is_capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _current(device: torch.device) -> AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
