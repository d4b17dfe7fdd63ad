"""IAM-Adam (Gower et al., 2025)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack, final

from torch.optim.optimizer import ParamsT

from .._backend.moves import MOMENTUM, Form
from .._backend.scalars import Scalar
from .._backend.vector import SQUARES
from .._step.decision import Line
from .._step.lines import count_steps, iterate_average, precondition, weight_after
from .._step.optimizer import PolyakOptimizer
from .._step.options import Cap, CommonAndBuffers, Fraction, FractionOrNone, NonNegative
from .._step.parts import Group, Part


@final
class IAMAdam(PolyakOptimizer):
    r"""IAM in the norm of Adam's preconditioner.

    .. code-block:: text

        v ← β₂v + (1 − β₂)∇f(x)²      D = ε + √(v / (1 − β₂ᵗ))
        γ = min{ (f(x) − f* + ⟨∇f(x), z − x⟩)₊ / ⟨∇f(x), D⁻¹∇f(x)⟩, η }
        z ← z − γD⁻¹∇f(x),  x ← Π((λx + z) / (1 + λ))      λ = β / (1 − β), or λ = t in step t

    Pass the mean loss of the mini-batch, the very value whose gradient was computed. f* is the loss of the solution on
    this very batch, such as a teacher's: `step(loss=loss, lower_bound=teacher_loss)`.

    Args:
        params: parameters or parameter groups, as for every torch optimizer.
        lr: the cap η on the step size, ≥ 0. Default 0.01, our choice in the norm of Adam; the authors' code has 1.
        momentum: β = λ/(1 + λ) in [0, 1); None for λ = t. Default 0.9, as in the authors' code.
        beta2: β₂ in [0, 1). Default 0.999, as in Adam.
        eps: ε ≥ 0, added to the root. Default 1e-8, as in Adam.

    Example:
        >>> import torch, polyak
        >>> w = torch.nn.Parameter(torch.tensor([0.0, -2.0]))
        >>> optimizer = polyak.IAMAdam([w], lr=1.0)
        >>> for _ in range(200):
        ...     loss = (w[0] + 2).square() + 0.5 * (w[1] - 1).square()
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     _ = optimizer.step(loss=loss)
        >>> [round(value, 2) for value in w.tolist()]
        [-2.0, 1.0]

    Differences from the authors' code: t counts steps, not tensors; a bound of 0 counts as given; v is float32 at
    least; the constraint is ours, and moves z as much as x.

    Reference:
        R. M. Gower et al., Analysis of an Idealized Stochastic Polyak Method and its Application to Black-Box Model
        Distillation, 2025, arXiv:2504.01898, section 5.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: Cap = 1e-2,
        *,
        momentum: FractionOrNone = 0.9,
        beta2: Fraction = 0.999,
        eps: NonNegative = 1e-8,
        **common: Unpack[CommonAndBuffers],
    ) -> None:
        own: dict[str, Any] = {"momentum": momentum}  # None is allowed here alone
        super().__init__(params, lr, beta2=beta2, eps=eps, **own, **common)

    takes_numbers = True
    shared = ("beta2",)
    momentum_form = Form.HEAVY_BALL
    takes_norm = needs_norm = False
    averages = count_steps
    extrapolation = staticmethod(weight_after)

    def buffers(self, group: Group) -> Sequence[str]:
        """Return the names of the last move and of v."""
        return (MOMENTUM, SQUARES)

    def linearize(self, line: Line, parts: list[Part], averages: dict[str, Any]) -> Line:
        """Return the line along D⁻¹∇f, with the loss as it would be at z."""
        t = averages["steps"] = averages["steps"] + 1
        return iterate_average(precondition(line, parts, t, parts[0].group["beta2"]), parts, t)

    def step_size(self, line: Line, group: Group) -> tuple[Scalar, Scalar]:
        """γ = min{ (f − f* + ⟨∇f, z − x⟩)₊ / ⟨∇f, D⁻¹∇f⟩, η }."""
        return line.gap / line.slope, group["lr"]
