"""MoMo (Schaipp, Ohana, Eickenberg, Defazio and Gower, ICML 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack, final

from torch.optim.optimizer import ParamsT

from .._backend.scalars import Scalar, bias_correction
from .._backend.vector import AVERAGE
from .._step.decision import Line
from .._step.lines import MODEL, after_first, averaged, growth, learned
from .._step.optimizer import PolyakOptimizer
from .._step.options import Cap, CommonAndBuffers, Flag, Fraction, NonNegative
from .._step.parts import Group, Part


@final
class MoMo(PolyakOptimizer):
    r"""Model-based momentum: a Polyak step along the average of the gradients.

    .. code-block:: text

        d ← βd + (1 − β)∇f(x)      f̄ ← βf̄ + (1 − β)f(x)      p̄ ← βp̄ + (1 − β)⟨∇f(x), x⟩
        h = f̄ + ⟨d, x⟩/s − p̄      s = 1 + ηλ      ρ = 1 without bias correction, else 1 − βᵏ
        τ = min{ η/ρ, s(h − ρf*)₊ / ‖d‖² }      x ← Π((x − τd) / s)

    Pass the mean loss of the mini-batch, the very value whose gradient was computed, without weight decay in it.

    Args:
        params: parameters or parameter groups, as for every torch optimizer.
        lr: the cap η on the step size γ = ρτ, ≥ 0. Default 1, the authors' value.
        momentum: β in [0, 1), how slowly the averages forget. Default 0.9, the authors' value.
        weight_decay: λ ≥ 0 of a proximal ℓ2 penalty. Default 0.
        bias_correction: let the averages begin at 0, and divide them by ρ, as Adam does. Default False, the authors'
            choice: they begin at the values of the first batch.
        learn_lower_bound: MoMo*: raise f* from `lower_bound` to what the model says that the loss can fall to. Default
            False. The bound of the first group, or of the call, is its floor.

    Example:
        >>> import torch, polyak
        >>> w = torch.nn.Parameter(torch.tensor([3.0, -1.0]))
        >>> optimizer = polyak.MoMo([w], lr=1.0)
        >>> for _ in range(200):
        ...     loss = (w[0] - 1).square() + 0.5 * (w[1] - 2).square()
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     _ = optimizer.step(loss=loss)
        >>> [round(value, 2) for value in w.tolist()]
        [1.0, 2.0]

    Differences from the authors' code: the averages and the learned bound are part of the state; several groups follow
    one model, each with its own s; a batch whose loss or gradient is not finite leaves the averages as they were.

    Reference:
        F. Schaipp, R. Ohana, M. Eickenberg, A. Defazio, R. M. Gower, MoMo: Momentum Models for Adaptive Learning Rates,
        ICML 2024, arXiv:2305.07583, Algorithm 1; the learned bound: section 4.2.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: Cap = 1.0,
        *,
        momentum: Fraction = 0.9,
        weight_decay: NonNegative = 0.0,
        bias_correction: Flag = False,
        learn_lower_bound: Flag = False,
        **common: Unpack[CommonAndBuffers],
    ) -> None:
        own = {"bias_correction": bias_correction, "learn_lower_bound": learn_lower_bound}
        super().__init__(params, lr, momentum=momentum, weight_decay=weight_decay, **own, **common)

    takes_numbers = True
    shared = ("momentum", "bias_correction", "learn_lower_bound")
    takes_norm = needs_norm = False

    def buffers(self, group: Group) -> Sequence[str]:
        """Return the name of d."""
        return (AVERAGE,)

    def averages(self) -> dict[str, float]:
        """k, f̄, p̄, the average of the bounds of calls, and f*."""
        return MODEL

    def linearize(self, line: Line, parts: list[Part], averages: dict[str, Any]) -> Line:
        """Return the averaged model along d."""
        k = averages["steps"] = averages["steps"] + 1
        group = parts[0].group
        beta, corrected = group["momentum"], group["bias_correction"]
        rho = bias_correction(beta, k) if corrected else 1.0
        line = averaged(line, parts, averages, beta if corrected else after_first(beta, k), rho)
        return learned(line, parts, averages) if group["learn_lower_bound"] else line

    def step_size(self, line: Line, group: Group) -> tuple[Scalar, Scalar]:
        """ρτ = min{ s(h/ρ − f*)₊ / ‖d/ρ‖², η }."""
        return growth(group) * line.gap / line.slope, group["lr"]
