"""MomSPS with a constant cap (Oikonomou and Loizou, ICLR 2025)."""

from __future__ import annotations

from typing import Unpack, final

from torch.optim.optimizer import ParamsT

from .._backend.moves import Form
from .._backend.scalars import Scalar
from .._step.decision import Line
from .._step.lines import dampened
from .._step.optimizer import PolyakOptimizer
from .._step.options import Cap, CommonAndBuffers, Fraction, Positive
from .._step.parts import Group


@final
class MomSPS(PolyakOptimizer):
    r"""Stochastic Polyak step size with heavy-ball momentum (MomSPS_max).

    .. code-block:: text

        γ = min{ (f(x) − f*)₊ / (c‖∇f(x)‖²), γ_b }      ‖·‖ over all parameters of all groups
        v ← βv − (1 − β)γ∇f(x),  x ← Π(x + v)

    Pass the mean loss of the mini-batch, the very value whose gradient was computed, without weight decay in it.

    Args:
        params: parameters or parameter groups, as for every torch optimizer.
        lr: the cap γ_b on the step size, ≥ 0. Default 10, the authors' value.
        c: scale of the squared norm, > 0. Default 1, the authors' value.
        momentum: β in [0, 1) of the heavy ball; the step is multiplied by 1 − β, so that one gradient moves x by γ in
            all. Default 0.9, the authors' value.

    Example:
        >>> import torch, polyak
        >>> w = torch.nn.Parameter(torch.tensor([5.0, -2.0]))
        >>> optimizer = polyak.MomSPS([w])
        >>> for _ in range(400):
        ...     loss = (w[0] - 3).square() + 0.5 * (w[1] - 1).square()
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     _ = optimizer.step(loss=loss)
        >>> [round(value, 2) for value in w.tolist()]
        [3.0, 1.0]

    Differences from the authors' code: f* is respected and the step never negative; a gradient that is exactly 0 gives
    no step, not NaN.

    Reference:
        D. Oikonomou, N. Loizou, Stochastic Polyak Step-sizes and Momentum: Convergence Guarantees and Practical
        Performance, ICLR 2025, arXiv:2406.04142, equation (4).
    """

    def __init__(
        self,
        params: ParamsT,
        lr: Cap = 10.0,
        *,
        c: Positive = 1.0,
        momentum: Fraction = 0.9,
        **common: Unpack[CommonAndBuffers],
    ) -> None:
        super().__init__(params, lr, c=c, momentum=momentum, **common)

    takes_numbers = True
    momentum_form = Form.HEAVY_BALL
    linearize = dampened

    def step_size(self, line: Line, group: Group) -> tuple[Scalar, Scalar]:
        """γ = min{ (f − f*)₊ / (c‖∇f‖²), γ_b }."""
        return line.gap / (group["c"] * line.slope), group["lr"]
