"""fused=True on CUDA: which tensors the Triton kernels take, where the kernels find them, and how they are started."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor
from torch.autograd.graph import increment_version

from . import _chunks
from . import _triton as kernels
from ._chunks import Row, Vector, flat

TYPES = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}
KEPT = 64  # tables of addresses, and pieces of pinned memory
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}  # the roundings of the other backends, which multiply, then add


def squares(x: Vector) -> tuple[list[Tensor], Vector]:
    """Return numbers whose sum is ‖x‖² for the tensors a kernel can take, and the other tensors."""
    kinds, others = _by_kind([(tensor,) for tensor in x])
    found = [launch.sums(kernels.measure) for launch in map(_Launch.of, kinds)]
    return found, [tensor for (tensor,) in others]


def scale_(x: Vector, a: Tensor) -> Vector:
    """x ← a·x for the tensors a kernel can take; return the others."""
    kinds, others = _by_kind([(tensor,) for tensor in x])
    for launch in map(_Launch.of, kinds):
        launch.run(kernels.scale, a.to(launch.device))
    increment_version(x)
    return [tensor for (tensor,) in others]


def move(
    form: str, rows: Sequence[Vector], gamma: Tensor, skip: Tensor, mu: float, measured: bool
) -> tuple[list[Tensor], list[Vector]]:
    """Move what the kernels can move; return numbers whose sum is its new ‖x‖², measured or not, and the rest."""
    kinds, others = _by_kind(list(zip(*rows, strict=True)))
    high = float(torch.tensor(mu, dtype=torch.float32))
    found = [
        launch.sums(kernels.move, gamma.to(launch.device), skip.to(launch.device), high, mu - high, FORM=form)
        for launch in map(_Launch.of, kinds)
    ]
    for vector in (rows[0], rows[2]):
        increment_version(vector)
    return found, [[row[column] for row in others] for column in range(len(rows))]


def _by_kind(rows: Sequence[Row]) -> tuple[list[list[Row]], list[Row]]:
    """Return flat views of the rows that have any numbers and that a kernel can take, by kind, and the other rows."""
    kinds: dict[object, list[Row]] = {}
    others: list[Row] = []
    for row in rows:
        views = flat(row) if all(map(_is_simple, row)) else None
        if views is None:
            others.append(row)
        elif views[0].numel():
            kinds.setdefault((row[0].device, *(tensor.dtype for tensor in row)), []).append(views)
    return list(kinds.values()), others


def _is_simple(tensor: Tensor) -> bool:
    """Return whether a tensor is plain numbers in the memory of a kernel's device."""
    return tensor.dtype in TYPES and tensor.is_cpu == _chunks.INTERPRETED and not tensor.is_neg()


_uploaded: dict[tuple[tuple[int, ...], torch.device], Tensor] = {}
_spare: list[Tensor] = []
_captured: list[tuple[Tensor, ...]] = []


class _Launch(NamedTuple):
    """A kind of tensors, and how a kernel finds them."""

    device: torch.device
    dtypes: list[torch.dtype]
    spans: tuple[Tensor, Tensor, Tensor]
    addresses: list[Tensor]
    aligned: bool

    @classmethod
    def of(cls, rows: Sequence[Row]) -> _Launch:
        device, dtypes = rows[0][0].device, [tensor.dtype for tensor in rows[0]]
        addresses = tuple(tensor.data_ptr() for column in zip(*rows, strict=True) for tensor in column)
        table = _upload(addresses, device).view(len(dtypes), len(rows))
        spans = _spans(tuple(row[0].numel() for row in rows), device)
        if _is_capturing(device):
            _captured.append(spans)  # a graph must find them there at every replay
        return cls(device, dtypes, spans, list(table.unbind()), all(address % 16 == 0 for address in addresses))

    @property
    def accumulator(self) -> torch.dtype:
        """The type in which a kernel computes: float32, or float64 for float64 tensors."""
        return torch.float64 if torch.float64 in self.dtypes else torch.float32

    def sums(self, kernel: Any, *arguments: Any, **constants: Any) -> Tensor:
        """Run a kernel that leaves a number for every span, and return their sum."""
        parts = torch.empty(len(self.spans[1]), dtype=self.accumulator, device=self.device)
        self.run(kernel, parts, *arguments, **constants)
        return parts.sum()

    def run(self, kernel: Any, *arguments: Any, **constants: Any) -> None:
        """Run a kernel with a program for every span."""
        types = dict(zip("XUV", (TYPES[dtype] for dtype in self.dtypes), strict=False))
        with _current(self.device):
            kernel[(len(self.spans[1]),)](
                *self.spans, *self.addresses, *arguments,
                **types, ACC=TYPES[self.accumulator], ALIGNED=self.aligned, **constants, **OPTIONS,
            )  # fmt: skip


@lru_cache(maxsize=64)
def _spans(sizes: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return the tensors' sizes and, for every span, its tensor and its first number there."""
    numbers = torch.tensor(sizes)
    counts = (numbers + kernels.SPAN.value - 1) // kernels.SPAN.value
    owner = torch.repeat_interleave(torch.arange(len(sizes)), counts)
    begin = torch.arange(len(owner)) - (counts.cumsum(0) - counts)[owner]
    return _send(numbers, device), _send(owner, device), _send(begin, device)


def _upload(addresses: tuple[int, ...], device: torch.device) -> Tensor:
    """Return the addresses on the device; tensors that are allocated anew mostly come back to the same ones."""
    key = (addresses, device)
    if key not in _uploaded or _is_capturing(device):  # what a graph uploads is there only once it is replayed
        table = _send(torch.tensor(addresses), device)
        if _is_capturing(device):
            return table
        _uploaded[key] = table
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
