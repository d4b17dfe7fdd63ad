"""Schedule-free SPS in Adam's norm (Oikonomou et al., 2026)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Unpack, final

from torch.optim.optimizer import ParamsT

from .._backend.moves import MOMENTUM, Form
from .._backend.scalars import Scalar, maximum
from .._backend.vector import SQUARES
from .._step.decision import Line
from .._step.lines import any_time, count_steps, precondition, share_before_last
from .._step.optimizer import PolyakOptimizer
from .._step.options import Cap, CommonAndBuffers, Fraction, NonNegative
from .._step.parts import Group, Part
from .._step.state import evaluate, train


@final
class ScheduleFreeAdamSPS(PolyakOptimizer):
    r"""Schedule-free SPS in the norm of Adam's preconditioner.

    .. code-block:: text

        y = βx + (1 − β)z, where gradients are taken
        v ← β₂v + (1 − β₂)∇f(y)²      D = ε + √(v / (1 − β₂ᵗ))
        γ = min{ (f(y) − f* + β⟨∇f(y), z − x⟩)₊ / max{ ⟨∇f(y), D⁻¹∇f(y)⟩, M }, η }
        z ← Π(z − γD⁻¹∇f(y)),  x ← (1 − c)x + cz      c = 1/(t + 1) in step t

    Pass the mean loss of the mini-batch, the very value whose gradient was computed. The parameters hold y; call
    `optimizer.eval()` before evaluating or exporting the model, and `optimizer.train()` before training goes on, as
    for `ScheduleFreeSPS`.

    Args:
        params: parameters or parameter groups, as for every torch optimizer.
        lr: a cap η on the step size, ≥ 0. Default `math.inf`, none, as in the paper.
        momentum: β in [0, 1), the share of x in y. Default 0.9, as in the paper.
        beta2: β₂ in [0, 1). Default 0.999, as in Adam.
        eps: ε ≥ 0, added to the root. Default 1e-8, as in Adam.
        floor: M ≥ 0, below which the squared norm does not count. Default 0, none.

    Example:
        >>> import torch, polyak
        >>> w = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = polyak.ScheduleFreeAdamSPS([w], lr=0.3)
        >>> for _ in range(500):
        ...     optimizer.zero_grad()
        ...     loss = (w.exp() - torch.tensor([0.5, 3.0])).square().mean()
        ...     loss.backward()
        ...     _ = optimizer.step(loss=loss)
        >>> optimizer.eval()
        >>> [round(value, 1) for value in w.exp().tolist()]
        [0.5, 2.9]

    Differences from the paper: a cap, and a constraint, which holds for z and so for the averages x and y; v is float32
    at least.

    Reference:
        D. Oikonomou, M. Buchholz, Y.-M. Pun, R. M. Gower, N. Loizou, Taking the Road Less Scheduled with Adaptive
        Polyak Steps, 2026, arXiv:2511.07767v2, the safeguarded step of schedule-free Adam.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: Cap = math.inf,
        *,
        beta2: Fraction = 0.999,
        momentum: Fraction = 0.9,
        eps: NonNegative = 1e-8,
        floor: NonNegative = 0.0,
        **common: Unpack[CommonAndBuffers],
    ) -> None:
        super().__init__(params, lr, momentum=momentum, beta2=beta2, eps=eps, floor=floor, **common)

    takes_numbers = True
    shared = ("beta2",)
    momentum_form = Form.SCHEDULE_FREE
    averages = count_steps
    train, eval, extrapolation = train, evaluate, staticmethod(share_before_last)

    def buffers(self, group: Group) -> Sequence[str]:
        """Return the names of the buffer that gives x and z, and of v."""
        return (MOMENTUM, SQUARES)

    def linearize(self, line: Line, parts: list[Part], averages: dict[str, Any]) -> Line:
        """Return the line along D⁻¹∇f, with the loss as it would be at z."""
        line = any_time(line, parts, averages)
        return precondition(line, parts, averages["steps"], parts[0].group["beta2"])

    def step_size(self, line: Line, group: Group) -> tuple[Scalar, Scalar]:
        """γ = min{ (f − f* + β⟨∇f, z − x⟩)₊ / max{ ⟨∇f, D⁻¹∇f⟩, M }, η }."""
        return line.gap / maximum(line.slope, group["floor"]), group["lr"]
