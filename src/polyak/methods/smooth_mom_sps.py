"""MomSPS with a cap that grows smoothly (Oikonomou and Loizou, ICLR 2025)."""

from __future__ import annotations

import math
from typing import Unpack, final

from torch.optim.optimizer import ParamsT

from .._backend.moves import Form
from .._backend.scalars import Scalar, minimum
from .._step.decision import Line
from .._step.lines import dampened
from .._step.optimizer import PolyakOptimizer
from .._step.options import Cap, CommonAndBuffers, Fraction, Growth, Positive, PositiveOrInf, Steps
from .._step.parts import Group


@final
class SmoothMomSPS(PolyakOptimizer):
    r"""Stochastic Polyak step size with heavy-ball momentum, which grows at most by a constant factor per epoch.

    .. code-block:: text

        γ_t = min{ (1 − β) min{ (f(x) − f*)₊ / (c‖∇f(x)‖²), γ_b }, τ^(1/n) γ_{t−1} }
        v ← βv − γ_t∇f(x),  x ← Π(x + v)

    Pass the mean loss of the mini-batch, the very value whose gradient was computed, without weight decay in it.

    Args:
        params: parameters or parameter groups, as for every torch optimizer.
        lr: the cap γ_b, ≥ 0. Default `math.inf`, none, as in the authors' code.
        steps_per_epoch: n, the number of steps in which γ may grow by `gamma`, ≥ 1: `len(data_loader)`.
        c: scale of the squared norm, > 0. Default 1, the authors' value.
        momentum: β in [0, 1) of the heavy ball. Default 0.9, the authors' value.
        gamma: τ ≥ 1, the growth of γ per epoch. Default 2, the authors' value.
        init_step_size: γ_{−1} > 0, the step size before the first. Default 1, the authors' value.

    Example:
        >>> import torch, polyak
        >>> w = torch.nn.Parameter(torch.tensor([3.0, 1.0]))
        >>> optimizer = polyak.SmoothMomSPS([w], steps_per_epoch=10)
        >>> for _ in range(400):
        ...     loss = (w[0] - 1).square() + 0.5 * (w[1] - 4).square()
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     _ = optimizer.step(loss=loss)
        >>> [round(value, 2) for value in w.tolist()]
        [1.0, 4.0]

    Differences from the authors' code: f* and a cap are respected and the step never negative; a batch of zero loss or
    gradient leaves γ_{t−1} as it is. `group["step_size"]` is γ_t / (1 − β), what one gradient moves x by in all.

    Reference:
        D. Oikonomou, N. Loizou, Stochastic Polyak Step-sizes and Momentum: Convergence Guarantees and Practical
        Performance, ICLR 2025, arXiv:2406.04142, section 4.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: Cap = math.inf,
        *,
        steps_per_epoch: Steps,
        c: Positive = 1.0,
        momentum: Fraction = 0.9,
        gamma: Growth = 2.0,
        init_step_size: PositiveOrInf = 1.0,
        **common: Unpack[CommonAndBuffers],
    ) -> None:
        own = {"steps_per_epoch": steps_per_epoch, "gamma": gamma, "init_step_size": init_step_size}
        super().__init__(params, lr, c=c, momentum=momentum, **own, **common)

    takes_numbers = True
    momentum_form = Form.HEAVY_BALL
    linearize = dampened

    def memory(self, group: Group) -> dict[str, float]:
        """γ_{t−1} / (1 − β), of the last step that was not 0."""
        return {"previous_step_size": group["init_step_size"] / (1.0 - group["momentum"])}

    def step_size(self, line: Line, group: Group) -> tuple[Scalar, Scalar]:
        """γ_t / (1 − β) = min{ (f − f*)₊ / (c‖∇f‖²), γ_b, τ^(1/n) γ_{t−1} / (1 − β) }."""
        cap = minimum(group["gamma"] ** (1 / group["steps_per_epoch"]) * group["previous_step_size"], group["lr"])
        ratio = line.gap / (group["c"] * line.slope)
        group["previous_step_size"] = minimum(ratio, cap)
        return ratio, cap
