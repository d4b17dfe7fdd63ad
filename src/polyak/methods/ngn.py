"""NGN and NGN-M (Orvieto and Xiao, 2024; Islamov et al., NeurIPS 2025)."""

from __future__ import annotations

from typing import Unpack, final

from torch.optim.optimizer import ParamsT

from .._backend.moves import Form
from .._backend.scalars import Scalar, where
from .._step.decision import Line
from .._step.lines import dampened
from .._step.optimizer import PolyakOptimizer
from .._step.options import Cap, CommonAndMomentum
from .._step.parts import Group


@final
class NGN(PolyakOptimizer):
    r"""Non-negative Gauss-Newton: the Polyak step with a soft cap.

    .. code-block:: text

        γ = c / (1 + c‖∇f(x)‖² / (2(f(x) − f*)))      ‖·‖ over all parameters of all groups
        x ← Π(x − γ∇f(x))                             without momentum
        v ← βv − (1 − β)γ∇f(x),  x ← Π(x + v)         heavy ball (NGN-M)

    γ is never more than a factor of 2 below min{ c, 2(f − f*)/‖∇f‖² }. Pass the mean loss of the mini-batch, the very
    value whose gradient was computed, without weight decay in it; it has to stay above `lower_bound`.

    Args:
        params: parameters or parameter groups, as for every torch optimizer.
        lr: the soft cap c, ≥ 0, which γ approaches for a large loss. Default 1, our choice; the authors tune it.
        momentum: β in [0, 1) of the heavy ball. Default 0.

    Example:
        >>> import torch, polyak
        >>> w = torch.nn.Parameter(torch.tensor([4.0, -4.0]))
        >>> optimizer = polyak.NGN([w], lr=1.0)
        >>> for _ in range(200):
        ...     loss = (w[0] - 2).square() + 0.5 * (w[1] + 1).square()
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     _ = optimizer.step(loss=loss)
        >>> [round(value, 2) for value in w.tolist()]
        [2.0, -1.0]

    Differences from the paper: a known lower bound is subtracted from the loss; γ is 0 for a loss at the bound, where
    the formula divides 0 by 0.

    Reference:
        A. Orvieto, L. Xiao, An Adaptive Stochastic Gradient Method with Non-negative Gauss-Newton Stepsizes, 2024,
        arXiv:2407.04358, equation (4); NGN-M: R. Islamov, N. Ajroldi, A. Orvieto, A. Lucchi, Enhancing Optimizer
        Stability: Momentum Adaptation of The NGN Step-size, NeurIPS 2025, arXiv:2508.15071, Algorithm 1.
    """

    def __init__(self, params: ParamsT, lr: Cap = 1.0, **common: Unpack[CommonAndMomentum]) -> None:
        super().__init__(params, lr, **common)

    takes_numbers = True
    momentum_form = Form.HEAVY_BALL
    linearize = dampened

    def step_size(self, line: Line, group: Group) -> tuple[Scalar, Scalar]:
        """γ = 2(f − f*) / (2(f − f*)/c + ‖∇f‖²)."""
        ratio = 2.0 * line.gap / (2.0 * line.gap / group["lr"] + line.slope)
        return where(line.gap > 0, ratio, line.gap), group["lr"]  # 0 / 0 if lr is 0, too
