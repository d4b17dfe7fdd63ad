"""How the parameters move once γ is known: each momentum form, written once for every method and backend.

A move takes one chunk of the parameters x, the direction u and the momentum buffer v, and changes x and v in place.
Where the mask `skip` is true, nothing moves, and v is multiplied by `keep`, which is μ in every other step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .._backend.chunks import Vector, chunks
from .._backend.packed import sort
from .._backend.scalars import Scalar
from .._backend.vector import accumulate_, add_up, axpy_, over_processes, scalar_dtype, squares
from .line import Block, Group

Move = Callable[[Vector, Vector, Vector, Scalar, float, Scalar, Tensor | None, bool], None]


def plain(
    x: Vector, u: Vector, v: Vector, a: Scalar, mu: float, keep: Scalar, skip: Tensor | None, at_once: bool
) -> None:
    """x ← x − γu, with a = −γ."""
    axpy_(x, u, a, skip)


def nesterov(
    x: Vector, u: Vector, v: Vector, a: Scalar, mu: float, keep: Scalar, skip: Tensor | None, at_once: bool
) -> None:
    """v ← μv − γu;  x ← x − γu + μv: the step size is inside the buffer (ALI-G's standard momentum)."""
    axpy_(x, u, a, skip)
    accumulate_(x, u, v, keep, a, mu, skip, at_once)


def adjusted(
    x: Vector, u: Vector, v: Vector, a: Scalar, mu: float, keep: Scalar, skip: Tensor | None, at_once: bool
) -> None:
    """v ← μv − u;  x ← x − γu + γμv: the step size is outside the buffer, as in torch.optim.SGD."""
    axpy_(x, u, a, skip)
    accumulate_(x, u, v, keep, -1.0, -a * mu, skip, at_once)


FORMS: dict[str, Move] = {"plain": plain, "nesterov": nesterov, "adjusted": adjusted}


def move(block: Block, u: Vector, gamma: Scalar, keep: Scalar, skip: Tensor | None, measured: bool) -> list[Scalar]:
    """Move the parameters of a group along −γu; return numbers whose sum is the new ‖x‖², if it is to be `measured`."""
    group, form = block.group, _form(block.group)
    rows: Sequence[Vector] = [block.x, u, block.v or block.x]
    kinds, rows = sort(rows, gamma) if group.get("fused") else ([], rows)
    found = [kind[0].kernels.move(form, *kind, gamma, group["momentum"], keep, skip, measured) for kind in kinds]
    if rows[0]:
        found += _move_chunks(group, rows, gamma, keep, skip, measured)
    return found if measured else []


def _move_chunks(
    group: Group, rows: Sequence[Vector], gamma: Scalar, keep: Scalar, skip: Tensor | None, measured: bool
) -> list[Scalar]:
    """Move chunk after chunk, and measure each right after its move, while a cache still holds it."""
    form, at_once, dtype = FORMS[_form(group)], group["foreach"] is None, scalar_dtype(rows[0])
    found: list[Scalar] = []
    for x, u, v in chunks(*rows, foreach=group["foreach"]):
        form(x, u, v, -gamma, group["momentum"], keep, skip, at_once)
        found += squares(x, dtype) if measured else []
    return found


def sum_after(block: Block, u: Vector, gamma: Scalar) -> Scalar:
    """Return Σ|x| + Σ|v| over what is float16, as a move would leave it: inf or NaN if float16 cannot hold that."""
    rows = [*zip(block.params, block.x, u, block.v or block.x, strict=True)]
    narrow = [row for row in rows if torch.float16 in (row[1].dtype, row[3].dtype)]
    return over_processes(lambda some: _sum_after(block.group, some, gamma), [row[0] for row in narrow], narrow)


def _sum_after(group: Group, rows: Sequence[tuple[Tensor, ...]], gamma: Scalar) -> Scalar:
    form, mu = FORMS[_form(group)], group["momentum"]
    found: list[Tensor] = []
    for x, u, v in chunks(*map(list, [*zip(*rows, strict=True)][1:]), foreach=group["foreach"]):
        trial, buffer = [tensor.clone() for tensor in x], [tensor.clone() for tensor in v if mu]
        form(trial, u, buffer, -gamma, mu, mu, None, False)
        found += [torch.linalg.vector_norm(tensor, 1, dtype=torch.float32) for tensor in (*trial, *buffer)]
    return add_up(found, group["step_size"])


def _form(group: Group) -> str:
    if not group["momentum"]:
        return "plain"
    return "adjusted" if group.get("adjusted_momentum") else "nesterov"
