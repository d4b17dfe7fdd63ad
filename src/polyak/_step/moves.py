"""How the parameters move once γ is known: each momentum form, written once for every method and backend.

A move takes one chunk of the parameters x, the direction u and the momentum buffer v, and changes x and v in place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from .._backend.chunks import Vector, chunks
from .._backend.packed import sort
from .._backend.scalars import Scalar
from .._backend.vector import accumulate_, axpy_, scalar_dtype, squares
from .line import Block, Group

Move = Callable[[Vector, Vector, Vector, Scalar, float, Tensor | None, bool], None]


def plain(x: Vector, u: Vector, v: Vector, a: Scalar, mu: float, skip: Tensor | None, at_once: bool) -> None:
    """x ← x − γu, with a = −γ."""
    axpy_(x, u, a, skip)


def nesterov(x: Vector, u: Vector, v: Vector, a: Scalar, mu: float, skip: Tensor | None, at_once: bool) -> None:
    """v ← μv − γu;  x ← x − γu + μv: the step size is inside the buffer (ALI-G's standard momentum)."""
    axpy_(x, u, a, skip)
    accumulate_(x, u, v, mu, a, mu, skip, at_once)


def adjusted(x: Vector, u: Vector, v: Vector, a: Scalar, mu: float, skip: Tensor | None, at_once: bool) -> None:
    """v ← μv − u;  x ← x − γu + γμv: the step size is outside the buffer, as in torch.optim.SGD."""
    axpy_(x, u, a, skip)
    accumulate_(x, u, v, mu, -1.0, -a * mu, skip, at_once)


FORMS: dict[str, Move] = {"plain": plain, "nesterov": nesterov, "adjusted": adjusted}


def move(block: Block, u: Vector, gamma: Scalar, skip: Tensor | None, measured: bool) -> list[Scalar]:
    """Move the parameters of a group along −γu; return numbers whose sum is the new ‖x‖², if it is to be `measured`."""
    group, form = block.group, _form(block.group)
    rows: Sequence[Vector] = [block.x, u, block.v or block.x]
    kinds, rows = sort(rows, gamma) if group.get("fused") else ([], rows)
    found = [kind[0].kernels.move(form, *kind, gamma, skip, group["momentum"], measured) for kind in kinds]
    if rows[0]:
        found += _move_chunks(group, rows, gamma, skip, measured)
    return found if measured else []


def _move_chunks(
    group: Group, rows: Sequence[Vector], gamma: Scalar, skip: Tensor | None, measured: bool
) -> list[Scalar]:
    """Move chunk after chunk, and measure each right after its move, while a cache still holds it."""
    form, at_once, dtype = FORMS[_form(group)], group["foreach"] is None, scalar_dtype(rows[0])
    found: list[Scalar] = []
    for x, u, v in chunks(*rows, foreach=group["foreach"]):
        form(x, u, v, -gamma, group["momentum"], skip, at_once)
        found += squares(x, dtype) if measured else []
    return found


def _form(group: Group) -> str:
    if not group["momentum"]:
        return "plain"
    return "adjusted" if group.get("adjusted_momentum") else "nesterov"
