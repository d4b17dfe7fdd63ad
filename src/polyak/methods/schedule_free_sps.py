"""Schedule-free SPS (Oikonomou et al., 2026)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Unpack, final

from torch.optim.optimizer import ParamsT

from .._backend.moves import MOMENTUM, Form
from .._backend.scalars import Scalar, maximum
from .._step.decision import Line
from .._step.lines import any_time, count_steps, share_before_last
from .._step.optimizer import PolyakOptimizer
from .._step.options import Cap, CommonAndBuffers, Fraction, NonNegative
from .._step.parts import Group, Part
from .._step.state import evaluate, train


@final
class ScheduleFreeSPS(PolyakOptimizer):
    r"""Schedule-free averaging with a Polyak step: no schedule, and no horizon to know beforehand.

    .. code-block:: text

        y = βx + (1 − β)z, where gradients are taken
        γ = min{ (f(y) − f* + β⟨∇f(y), z − x⟩)₊ / max{ ‖∇f(y)‖², M }, η }
        z ← Π(z − γ∇f(y)),  x ← (1 − c)x + cz      c = 1/(t + 1) in step t

    Pass the mean loss of the mini-batch, the very value whose gradient was computed. While training, the parameters
    hold y. Call `optimizer.eval()` before evaluating or exporting the model, which makes them the average x, and
    `optimizer.train()` before training goes on, as with the package schedule-free. Batch norm needs a pass over some
    training data between `optimizer.eval()` and the evaluation.

    Args:
        params: parameters or parameter groups, as for every torch optimizer.
        lr: a cap η on the step size, ≥ 0. Default `math.inf`, none, as in the paper.
        momentum: β in [0, 1), the share of x in y. Default 0.9, as in the paper.
        floor: M ≥ 0, below which the squared norm does not count. Default 0, none.

    Example:
        >>> import torch, polyak
        >>> w = torch.nn.Parameter(torch.tensor([2.0, 0.5]))
        >>> optimizer = polyak.ScheduleFreeSPS([w])
        >>> for _ in range(100):
        ...     loss = (w - torch.tensor([-1.0, 4.0])).square().sum()
        ...     loss.backward()
        ...     _ = optimizer.step(loss=loss)
        ...     optimizer.zero_grad()
        >>> optimizer.eval()  # w is now the average x
        >>> [round(value) for value in w.tolist()]
        [-1, 4]

    Differences from the paper: a cap, and a constraint, which holds for z and so for the averages x and y; x is not
    stored, since y and one buffer give it.

    Reference:
        D. Oikonomou, M. Buchholz, Y.-M. Pun, R. M. Gower, N. Loizou, Taking the Road Less Scheduled with Adaptive
        Polyak Steps, 2026, arXiv:2511.07767v2, the safeguarded step of schedule-free SGD.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: Cap = math.inf,
        *,
        momentum: Fraction = 0.9,
        floor: NonNegative = 0.0,
        **common: Unpack[CommonAndBuffers],
    ) -> None:
        super().__init__(params, lr, momentum=momentum, floor=floor, **common)

    takes_numbers = True
    momentum_form = Form.SCHEDULE_FREE
    averages = count_steps
    train, eval, extrapolation = train, evaluate, staticmethod(share_before_last)

    def buffers(self, group: Group) -> Sequence[str]:
        """Return the name of the buffer that gives x and z."""
        return (MOMENTUM,)

    def linearize(self, line: Line, parts: list[Part], averages: dict[str, Any]) -> Line:
        """Return the line along the gradient, with the loss as it would be at z."""
        return any_time(line, parts, averages)

    def step_size(self, line: Line, group: Group) -> tuple[Scalar, Scalar]:
        """γ = min{ (f − f* + β⟨∇f, z − x⟩)₊ / max{ ‖∇f‖², M }, η }."""
        return line.gap / maximum(line.slope, group["floor"]), group["lr"]
