"""fused=True on CUDA: which types the Triton kernels take, where they find the vectors, and how they are started."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor
from torch.autograd.graph import increment_version

from . import cuda_kernels as kernels
from .packed import Packed
from .scalars import Scalar

TYPES = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}
KEPT = 64  # tables of addresses, and pieces of pinned memory
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}  # the roundings of the other backends, which multiply, then add


def takes(types: set[torch.dtype]) -> bool:
    """Return whether there is a kernel for vectors of these types."""
    return types <= TYPES.keys()


def squares(x: Packed) -> Tensor:
    """Return ‖x‖²."""
    return _sums(kernels.measure, [x]).sum()


def scale_(x: Packed, a: Tensor) -> None:
    """x ← a·x."""
    _run(kernels.scale, [x], a.to(x[0].device))
    increment_version(x)


def move(
    form: str, x: Packed, u: Packed, v: Packed, gamma: Tensor, mu: float, keep: Tensor, skip: Tensor, measured: bool
) -> Scalar:
    """Move x and v; return the new ‖x‖², or 0 if it is not asked for."""
    device, high = x[0].device, float(torch.tensor(mu, dtype=torch.float32))
    scalars = [scalar.to(device) for scalar in (gamma, keep, skip)]
    sums = _sums(kernels.move, [x, u, v], *scalars, high, mu - high, FORM=form)
    increment_version(x)  # no graph holds a momentum buffer
    return sums.sum() if measured else 0.0


def _sums(kernel: Any, vectors: Sequence[Packed], *arguments: Any, **constants: Any) -> Tensor:
    """Run a kernel that leaves a number for every span, and return these numbers."""
    there = _there(vectors[0])
    sums = torch.empty(len(there.owner), dtype=_accumulator(vectors), device=there.owner.device)
    _run(kernel, vectors, sums, *arguments, **constants)
    return sums


def _run(kernel: Any, vectors: Sequence[Packed], *arguments: Any, **constants: Any) -> None:
    """Run a kernel with a program for every span."""
    there = _there(vectors[0])
    types = {name: TYPES[vector.dtype] for name, vector in zip("XUV", vectors, strict=False)}
    with _current(there.owner.device):
        kernel[(len(there.owner),)](
            there.rows[0], there.owner, there.begin, *[there.rows[vector.column] for vector in vectors], *arguments,
            **types, ACC=TYPES[_accumulator(vectors)], ALIGNED=there.aligned, **constants, **OPTIONS,
        )  # fmt: skip


def _accumulator(vectors: Sequence[Packed]) -> torch.dtype:
    """Return the type in which a kernel computes: float32, or float64 for float64 tensors."""
    return torch.float64 if any(vector.dtype == torch.float64 for vector in vectors) else torch.float32


class _There(NamedTuple):
    """A table on its device, and for every span its tensor and its first number there."""

    rows: Sequence[Tensor]
    owner: Tensor
    begin: Tensor
    aligned: bool


_uploaded: dict[tuple[tuple[int, ...], torch.device], Tensor] = {}
_spare: list[Tensor] = []
_captured: list[tuple[Tensor, ...]] = []


def _there(x: Packed) -> _There:
    """Return the table of a vector on the vector's device."""
    table, device = x.table, x[0].device
    if table.there is None:
        rows = _upload(tuple(table.numbers), device).view(-1, len(table.sizes)).unbind()
        owner, begin = spans = _spans(tuple(table.sizes), device)
        if _is_capturing(device):
            _captured.append(spans)  # a graph must find them there at every replay
        aligned = all(address % 16 == 0 for address in table.numbers[len(table.sizes) :])
        table.there = _There(rows, owner, begin, aligned)
    there: _There = table.there
    return there


@lru_cache(maxsize=64)
def _spans(sizes: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return, for every span, its tensor and its first number there."""
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
