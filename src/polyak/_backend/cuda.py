"""fused=True on CUDA: which types the Triton kernels take, where they find the vectors, and how they are started."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import combinations
from typing import Any, NamedTuple, cast, final

import torch
import triton.language as tl
from torch import Tensor
from torch.autograd.graph import increment_version

from . import cuda_kernels as kernels
from .chunks import Packed, Vector, pack
from .distributed import is_capturing
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
KEPT = 256  # rows of addresses
RESERVED = 16  # such rows that a capture may upload
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}  # the roundings of the other backends, which multiply, then add


@final
class CudaKernels(Vectors):
    """A group's vectors in a table of addresses, each of one type; `General` documents the interface."""

    TYPES = tuple({*chosen} for n in (1, 2, 3, 4) for chosen in combinations(TYPES, n))
    numbers, sharded, can_be_kept = False, False, True

    x: Packed

    def __init__(
        self, group: dict[str, Any], params: Sequence[Tensor], x: Packed, g: Packed, buffers: Mapping[str, Packed]
    ) -> None:
        self.group, self.params, self.x, self.g, self.u, self.buffers = group, params, x, g, g, buffers
        self.table = x.table
        self.has_float16 = x.dtype == torch.float16
        self.largest, self.rounding = largest_but_float16({x.dtype}, group), relative_rounding(x)

    def take_gradients(self, g: Vector) -> None:
        """Take the gradients of another step; of the table, only their addresses are looked up and sent again."""
        count, packed, table = len(g), Packed(g), self.table
        packed.table, packed.column, packed.dtype = table, 2, self.x.dtype
        own, addresses = slice(2 * count, 3 * count), array("q", [*map(Tensor.data_ptr, g)])
        if table.on_device is not None and table.on_device.captured:  # and perhaps never replayed
            table.on_device = None
        if table.numbers[own] != addresses:
            table.numbers[own] = addresses
            table.on_device = _with_row(table.on_device, 2, tuple(addresses)) if table.on_device else None
        self.g = self.u = packed

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
        vectors = (self.x, u, self.buffers.get(buffer, self.x), self.buffers.get(SQUARES, self.x))
        return [cast(Packed, vector) for vector in vectors]

    def _denominator(self) -> tuple[Any, float]:
        """Return the root of D's correction, and ε."""
        if self.preconditioner is None:
            return 1.0, 0.0
        return self.preconditioner.correction**0.5, self.preconditioner.eps

    def scale_(self, x: Vector, a: Any) -> None:
        """x ← a·x."""
        _run(kernels.scale, [cast(Packed, x)], a.to(x[0].device))
        increment_version(x)


_usable: dict[torch.device, bool] = {}


def is_usable(device: torch.device) -> bool:
    """Return whether Triton compiles kernels here, for which it needs a C compiler and the headers of Python."""
    if device not in _usable:
        if is_capturing(device):
            return False
        (x,) = pack([[torch.ones(1, device=device)]], CudaKernels.TYPES)
        try:
            _run(kernels.scale, [x], torch.ones((), device=device))
            _usable[device] = True
        except Exception:  # each step of the compilation has errors of its own
            _usable[device] = False
    return _usable[device]


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
            **dtypes, ACC=TYPES[_accumulator(vectors)], ALIGNED=all(place.alignments), **constants, **OPTIONS,
        )  # fmt: skip


def _accumulator(vectors: Sequence[Packed]) -> torch.dtype:
    """Return the type in which a kernel computes: float32, or float64 for float64 tensors."""
    return torch.float64 if any(vector.dtype == torch.float64 for vector in vectors) else torch.float32


class _OnDevice(NamedTuple):
    """A table on its device: the sizes, the addresses of each vector, and of each span its tensor and first number."""

    rows: Sequence[Tensor]
    owner: Tensor
    begin: Tensor
    alignments: Sequence[bool]
    captured: bool
    """Whether a graph may hold a part of it, which is there only once the graph is replayed."""


_uploaded: dict[tuple[tuple[int, ...], torch.device], Tensor] = {}
_known_spans: dict[tuple[tuple[int, ...], torch.device], tuple[Tensor, Tensor]] = {}
_captured: list[tuple[Tensor, ...]] = []  # what a graph reads again at every replay


def _on_device(x: Packed) -> _OnDevice:
    """Return the table of a vector on the vector's device."""
    table, device, length = x.table, x[0].device, len(x.table.sizes)
    capturing = is_capturing(device)
    if table.on_device is None:
        numbers = table.numbers.tolist()
        rows = [tuple(numbers[i : i + length]) for i in range(0, len(numbers), length)]
        alignments, sent = [*map(_is_aligned, rows[1:])], [_upload(row, device) for row in rows]
        table.on_device = _OnDevice(sent, *_spans(rows[0], device), alignments, capturing)
    on_device: _OnDevice = table.on_device
    if capturing:
        _captured.append((*on_device.rows, on_device.owner, on_device.begin))
    return on_device


def _with_row(on_device: _OnDevice, column: int, row: tuple[int, ...]) -> _OnDevice:
    """Return a table with other addresses in a column."""
    rows, alignments, device = [*on_device.rows], [*on_device.alignments], on_device.owner.device
    rows[column], alignments[column - 1] = _upload(row, device), _is_aligned(row)
    return on_device._replace(rows=rows, alignments=alignments, captured=is_capturing(device))


def _is_aligned(row: tuple[int, ...]) -> bool:
    return not any([address % 16 for address in row])


def _spans(sizes: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return, for every span, its tensor and its first number in it."""
    if (sizes, device) in _known_spans:
        return _known_spans[sizes, device]
    numbers = torch.tensor(sizes, device="cpu")
    counts = (numbers + kernels.SPAN.value - 1) // kernels.SPAN.value
    owner = torch.repeat_interleave(torch.arange(len(sizes), device="cpu"), counts)
    begin = torch.arange(len(owner), device="cpu") - (counts.cumsum(0) - counts)[owner]
    spans = _send(owner, device, reserved=2), _send(begin, device, reserved=2)
    _keep(_known_spans, (sizes, device), spans)
    return spans


def _upload(row: tuple[int, ...], device: torch.device) -> Tensor:
    """Return a row of a table on the device; tensors that are allocated anew mostly come back to the same addresses."""
    uploaded = _uploaded.get((row, device))
    if uploaded is None:
        uploaded = _send(torch.tensor(row, device="cpu"), device, RESERVED)
        _keep(_uploaded, (row, device), uploaded)
    return uploaded


def _keep(known: dict[tuple[tuple[int, ...], torch.device], Any], key: tuple[Any, torch.device], value: Any) -> None:
    """Keep what is on a device for later steps, unless a graph has yet to send it there."""
    if not is_capturing(key[1]):
        known[key] = value
        if len(known) > KEPT:
            del known[next(iter(known))]


def _send(numbers: Tensor, device: torch.device, reserved: int) -> Tensor:
    """Copy from pinned memory, without waiting; a graph reads it at every replay, from a reserve for some copies."""
    if device.type == "cpu":
        return numbers
    if not is_capturing(device):
        _pinned.provide(reserved * len(numbers))
        return numbers.pin_memory().to(device, non_blocking=True)
    host = _pinned.take(len(numbers)).copy_(numbers)
    sent = host.to(device, non_blocking=True)
    _captured.append((host, sent))
    return sent


class _Pinned:
    """Pinned memory in reserve for graphs, since a capture may not allocate any."""

    def __init__(self) -> None:
        self._reserve = torch.empty(0, dtype=torch.int64, device="cpu")

    def provide(self, length: int) -> None:
        """Have enough for so many numbers."""
        if len(self._reserve) < length:
            self._reserve = torch.empty(max(2 * length, 1 << 16), dtype=torch.int64, device="cpu", pin_memory=True)

    def take(self, length: int) -> Tensor:
        """Return memory that nothing else will be given."""
        if len(self._reserve) < length:
            raise RuntimeError(
                "fused=True: a CUDA graph can capture a step once some have been made outside of it, to warm up."
            )
        taken, self._reserve = self._reserve[:length], self._reserve[length:]
        return taken


_pinned = _Pinned()


def _current(device: torch.device) -> AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
