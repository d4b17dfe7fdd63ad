"""IAM, iterate averaging with a Polyak step (Gower et al., 2025)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack, final

from torch.optim.optimizer import ParamsT

from .._backend.moves import MOMENTUM, Form
from .._backend.scalars import Scalar
from .._step.decision import Line
from .._step.lines import count_steps, iterate_average, weight_after
from .._step.optimizer import PolyakOptimizer
from .._step.options import Cap, CommonAndBuffers, FractionOrNone
from .._step.parts import Group, Part


@final
class IAM(PolyakOptimizer):
    r"""Iterate averaging adaptive method: the Polyak step of a moving average of the iterates.

    .. code-block:: text

        γ = min{ (f(x) − f* + ⟨∇f(x), z − x⟩)₊ / ‖∇f(x)‖², η }
        z ← z − γ∇f(x),  x ← Π((λx + z) / (1 + λ))      λ = β / (1 − β), or λ = t in step t

    Pass the mean loss of the mini-batch, the very value whose gradient was computed. f* is the loss of the solution on
    this very batch, such as a teacher's: `step(loss=loss, lower_bound=teacher_loss)`.

    Args:
        params: parameters or parameter groups, as for every torch optimizer.
        lr: the cap η on the step size, ≥ 0. Default 1, as in the authors' code.
        momentum: β = λ/(1 + λ) in [0, 1); None for λ = t, which converges at every step without tuning. Default 0.9, as
            in the authors' code.

    Example:
        >>> import torch, polyak
        >>> w = torch.nn.Parameter(torch.tensor([4.0, 0.0]))
        >>> optimizer = polyak.IAM([w])
        >>> for _ in range(200):
        ...     loss = (w[0] - 2).square() + 0.5 * (w[1] - 3).square()
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     _ = optimizer.step(loss=loss)
        >>> [round(value, 2) for value in w.tolist()]
        [2.0, 3.0]

    Differences from the authors' code: a bound of 0 counts as given; the constraint is ours, and moves z as much as x.

    Reference:
        R. M. Gower et al., Analysis of an Idealized Stochastic Polyak Method and its Application to Black-Box Model
        Distillation, 2025, arXiv:2504.01898, Algorithm 1.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: Cap = 1.0,
        *,
        momentum: FractionOrNone = 0.9,
        **common: Unpack[CommonAndBuffers],
    ) -> None:
        own: dict[str, Any] = {"momentum": momentum}  # None is allowed here alone
        super().__init__(params, lr, **own, **common)

    takes_numbers = True
    momentum_form = Form.HEAVY_BALL
    takes_norm = False
    averages = count_steps
    extrapolation = staticmethod(weight_after)

    def buffers(self, group: Group) -> Sequence[str]:
        """Return the name of the last move."""
        return (MOMENTUM,)

    def linearize(self, line: Line, parts: list[Part], averages: dict[str, Any]) -> Line:
        """Return the line along the gradient, with the loss as it would be at z."""
        averages["steps"] = averages["steps"] + 1
        return iterate_average(line, parts, averages["steps"])

    def step_size(self, line: Line, group: Group) -> tuple[Scalar, Scalar]:
        """γ = min{ (f − f* + ⟨∇f, z − x⟩)₊ / ‖∇f‖², η }."""
        return line.gap / line.slope, group["lr"]
