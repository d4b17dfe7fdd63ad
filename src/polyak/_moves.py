"""How the parameters move once γ is known: each momentum form, written once for every method and backend.

A move takes one chunk of the parameters x, the direction u and the momentum buffer v, and changes x and v in place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from ._chunks import Vector, chunks
from ._line import Block, Group
from ._packed import sort
from ._scalars import Scalar
from ._vector import axpy_, scale_, sum_squares

Move = Callable[[Vector, Vector, Vector, Scalar, float, Tensor | None], None]


def plain(x: Vector, u: Vector, v: Vector, a: Scalar, mu: float, skip: Tensor | None) -> None:
    """x ← x − γu, with a = −γ."""
    axpy_(x, u, a, skip)


def nesterov(x: Vector, u: Vector, v: Vector, a: Scalar, mu: float, skip: Tensor | None) -> None:
    """v ← μv − γu;  x ← x − γu + μv: the step size is inside the buffer (ALI-G's standard momentum)."""
    scale_(v, mu, skip)
    axpy_(v, u, a, skip)
    axpy_(x, u, a, skip)
    axpy_(x, v, mu, skip)


def adjusted_nesterov(x: Vector, u: Vector, v: Vector, a: Scalar, mu: float, skip: Tensor | None) -> None:
    """v ← μv − u;  x ← x − γu + γμv: the step size is outside the buffer, as in torch.optim.SGD."""
    scale_(v, mu, skip)
    axpy_(v, u, -1.0, skip)
    axpy_(x, u, a, skip)
    axpy_(x, v, -a * mu, skip)


FORMS: dict[str, Move] = {"plain": plain, "nesterov": nesterov, "adjusted": adjusted_nesterov}


def move(block: Block, u: Vector, gamma: Scalar, skip: Tensor | None, measured: bool) -> list[Scalar]:
    """Move the parameters of a group along −γu; return numbers whose sum is the new ‖x‖², if a kernel `measured` it."""
    group, form, mu = block.group, _form(block.group), block.group["momentum"]
    rows: Sequence[Vector] = [block.x, u, block.v or block.x]
    kinds, rows = sort(rows, gamma) if group.get("fused") else ([], rows)
    found = [kind[0].kernels.move(form, *kind, gamma, skip, mu, measured) for kind in kinds]
    if not rows[0]:
        return found if measured else []
    for x, u_chunk, v in chunks(*rows, foreach=group["foreach"]):
        FORMS[form](x, u_chunk, v, -gamma, mu, skip)
    return [*found, sum_squares(rows[0])] if found and measured else []


def _form(group: Group) -> str:
    if not group["momentum"]:
        return "plain"
    return "adjusted" if group.get("adjusted_momentum") else "nesterov"
