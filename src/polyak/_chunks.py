"""How a vector is cut into the pieces that one operation takes.

There are three ways. The loop takes tensor after tensor. Multi-tensor kernels (`_foreach_`) take all tensors of a kind
at once. On a CPU neither is best: a vector that does not fit the cache is read from memory again by every operation of
a step, and many small tensors cost a call each. So there the default is pieces of a size that the cache holds: slices
of large tensors, and small tensors of a kind together.
"""

from __future__ import annotations

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
PIECE = 1 << 19  # numbers of a piece: three float32 vectors of this length are 6 MiB
SMALL = 1 << 15  # tensors of fewer numbers share a piece
SHARED = 1 << 17  # numbers of a piece that is shared
KIND = attrgetter("device", "dtype")


def reads_nothing(device: torch.device) -> bool:
    """Return whether the host may not read what is on a device: it would wait, or bind a compiled graph to a number."""
    return device.type != "cpu" or INTERPRETED or torch.compiler.is_compiling()


def chunks(x: Vector, *others: Vector, foreach: bool | None) -> Iterator[tuple[Vector, ...]]:
    """Cut vectors of equal layout into pieces: one tensor, all of a kind, or (None) what suits the device."""
    device = x[0].device.type if x else "cpu"
    if foreach is None and device == "cpu" and not torch.compiler.is_compiling():
        yield from blocks(x, *others)
    elif foreach or (foreach is None and device in MULTI_TENSOR_DEVICES):
        yield from _kinds(zip(x, *others, strict=True))
    else:
        yield from (tuple([tensor] for tensor in row) for row in zip(x, *others, strict=True))


def blocks(*vectors: Vector) -> Iterator[tuple[Vector, ...]]:
    """Cut vectors into pieces that a cache holds."""
    sizes = [*map(Tensor.numel, vectors[0])]
    if len({*map(KIND, chain(*vectors))}) > 1:
        for kind in _kinds(zip(*vectors, strict=True)):
            yield from _blocks_of_a_kind(kind, [*map(Tensor.numel, kind[0])])
    elif sum(sizes) <= SHARED:
        yield from [vectors] if sizes else []
    else:
        yield from _blocks_of_a_kind(vectors, sizes)


def _blocks_of_a_kind(vectors: tuple[Vector, ...], sizes: list[int]) -> Iterator[tuple[Vector, ...]]:
    together: list[Row] = []
    held = 0
    for row, size in zip(zip(*vectors, strict=True), sizes, strict=True):
        if size >= SMALL:
            for pieces in slices(row) if size > PIECE else [row]:
                yield tuple([[piece] for piece in pieces])
            continue
        if held + size > SHARED:
            yield tuple(map(list, zip(*together, strict=True)))
            together, held = [], 0
        together.append(row)
        held += size
    if together:
        yield tuple(map(list, zip(*together, strict=True)))


def _kinds(rows: Iterable[Row]) -> Iterator[tuple[Vector, ...]]:
    """Collect the rows of a kind: of one device and the same types."""
    kinds: dict[object, list[Row]] = {}
    for row in rows:
        kinds.setdefault(tuple(map(KIND, row)), []).append(row)
    yield from (tuple(map(list, zip(*found, strict=True))) for found in kinds.values())


def slices(row: Row) -> Iterable[Row]:
    """Cut tensors of one layout into slices of a size that a cache holds; other tensors stay whole."""
    if (views := flat(row)) is None:
        return [row]
    count = -(-views[0].numel() // PIECE)
    return [views] if count <= 1 else zip(*[view.chunk(count) for view in views], strict=True)


def flat(row: Row) -> Row | None:
    """Return one-dimensional views of tensors whose numbers lie in memory in the same order, without gaps."""
    if all(map(Tensor.is_contiguous, row)):
        return tuple([tensor.view(-1) for tensor in row])
    strides = row[0].stride()
    order = sorted(range(row[0].dim()), key=strides.__getitem__, reverse=True)
    if any(tensor.stride() != strides for tensor in row) or not row[0].permute(order).is_contiguous():
        return None
    return tuple(tensor.permute(order).view(-1) for tensor in row)
