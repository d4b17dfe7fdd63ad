"""How a vector is cut into the pieces that one operation takes.

There are three ways. The loop takes tensor after tensor. Multi-tensor kernels (`_foreach_`) take all tensors of a kind
at once. On a CPU neither is best: a vector that does not fit the cache is read from memory again by every operation of
a step, and many small tensors cost a call each. So there the default is pieces of a size that the cache holds: slices
of large tensors, and small tensors of a kind together.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from itertools import chain
from operator import attrgetter

import torch
from torch import Tensor

Vector = list[Tensor]
Row = tuple[Tensor, ...]

MULTI_TENSOR_DEVICES = frozenset({"cuda", "xpu"})
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # the CPU then stands for a device
PIECE = 3 << 18  # numbers of a piece at most: three float32 vectors of this length are 9 MiB
ALIGNED = 64  # a slice begins at a multiple of so many numbers
SMALL = 1 << 15  # tensors of fewer numbers share a piece
SHARED = 1 << 17  # numbers of a piece that is shared
KIND, DTYPE, IS_CPU = attrgetter("device", "dtype"), attrgetter("dtype"), attrgetter("is_cpu")


def reads_nothing(device: torch.device) -> bool:
    """Return whether the host may not read what is on a device: it would wait, or bind a compiled graph to a number."""
    return device.type != "cpu" or INTERPRETED or torch.compiler.is_compiling()


def chunks(x: Vector, *others: Vector, foreach: bool | None, piece: int | None = PIECE) -> Iterable[tuple[Vector, ...]]:
    """Cut vectors of equal layout into pieces: one tensor, all of a kind, or (None) what suits the device."""
    device = x[0].device.type if x else "cpu"
    if foreach is None and device == "cpu" and not torch.compiler.is_compiling():
        return blocks(x, *others, piece=piece)
    if foreach or (foreach is None and device in MULTI_TENSOR_DEVICES):
        return kinds(zip(x, *others, strict=True))
    return (tuple([tensor] for tensor in row) for row in zip(x, *others, strict=True))


def blocks(*vectors: Vector, piece: int | None = PIECE) -> Iterable[tuple[Vector, ...]]:
    """Cut vectors into pieces of that many numbers, which a cache holds, or leave large tensors whole (None)."""
    if not _are_of_a_kind([*chain(*vectors)]):
        found = kinds(zip(*vectors, strict=True))
        return chain.from_iterable(_blocks_of_a_kind(kind, [*map(Tensor.numel, kind[0])], piece) for kind in found)
    sizes = [*map(Tensor.numel, vectors[0])]
    if sum(sizes) <= SHARED:
        return [vectors] if sizes else []
    return _blocks_of_a_kind(vectors, sizes, piece)


def _blocks_of_a_kind(vectors: tuple[Vector, ...], sizes: list[int], piece: int | None) -> Iterator[tuple[Vector, ...]]:
    together: list[Row] = []
    held = 0
    for row, size in zip(zip(*vectors, strict=True), sizes, strict=True):
        if size >= SMALL:
            for part in _slices(row, piece) if piece and size > piece else [row]:
                yield tuple([[tensor] for tensor in part])
            continue
        if held + size > SHARED:
            yield tuple(map(list, zip(*together, strict=True)))
            together, held = [], 0
        together.append(row)
        held += size
    if together:
        yield tuple(map(list, zip(*together, strict=True)))


def kinds(rows: Iterable[Row]) -> list[tuple[Vector, ...]]:
    """Collect the rows of a kind: of one device and the same types."""
    found: dict[object, list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(map(KIND, row)), []).append(row)
    return [tuple(map(list, zip(*same, strict=True))) for same in found.values()]


def _are_of_a_kind(tensors: Vector) -> bool:
    return len({*map(DTYPE, tensors)}) <= 1 and (all(map(IS_CPU, tensors)) or len({*map(KIND, tensors)}) == 1)


def _slices(row: Row, piece: int) -> Iterable[Row]:
    """Cut tensors of one layout into equal slices of at most so many numbers; other tensors stay whole."""
    views = flat(row)
    if views is None:
        return [row]
    size = row[0].numel()
    length = math.ceil(size / math.ceil(size / piece) / ALIGNED) * ALIGNED
    return zip(*[torch.split(view, length) for view in views], strict=True)


def flat(row: Row) -> Row | None:
    """Return one-dimensional views of tensors that lie alike, in the order of their memory."""
    if all(map(Tensor.is_contiguous, row)):
        return tuple([tensor.view(-1) for tensor in row])
    if not lie_alike(row):
        return None
    order = _order(row[0])
    return tuple(tensor.permute(order).view(-1) for tensor in row)


def lie_alike(row: Row) -> bool:
    """Return whether the numbers of all tensors lie in memory in the same order, without gaps."""
    if all(map(Tensor.is_contiguous, row)):
        return len({*map(Tensor.numel, row)}) == 1
    strides = row[0].stride()
    return all(tensor.stride() == strides for tensor in row) and row[0].permute(_order(row[0])).is_contiguous()


def _order(tensor: Tensor) -> list[int]:
    """Return the dimensions by falling stride."""
    return sorted(range(tensor.dim()), key=tensor.stride().__getitem__, reverse=True)
