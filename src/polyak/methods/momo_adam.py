"""MoMo-Adam (Schaipp, Ohana, Eickenberg, Defazio and Gower, ICML 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack, final

from torch.optim.optimizer import ParamsT

from .._backend.scalars import Scalar, bias_correction
from .._backend.vector import AVERAGE, SQUARES
from .._step.decision import Line
from .._step.lines import MODEL, adam, averaged, growth, learned
from .._step.optimizer import PolyakOptimizer
from .._step.options import Betas, Cap, CommonAndBuffers, Flag, NonNegative
from .._step.parts import Group, Part


@final
class MoMoAdam(PolyakOptimizer):
    r"""Adam with a Polyak step: MoMo in the norm of Adam's preconditioner.

    .. code-block:: text

        d ← β₁d + (1 − β₁)∇f(x)      v ← β₂v + (1 − β₂)∇f(x)²      D = ε + √(v / (1 − β₂ᵏ))
        f̄ ← β₁f̄ + (1 − β₁)f(x)       p̄ ← β₁p̄ + (1 − β₁)⟨∇f(x), x⟩      ρ = 1 − β₁ᵏ
        h = f̄ + ⟨d, x⟩/s − p̄         s = 1 + ηλ      τ = min{ η/ρ, s(h − ρf*)₊ / ⟨d, D⁻¹d⟩ }
        x ← Π((x − τD⁻¹d) / s), or with decoupled weight decay  x ← Π((1 − ηλ)x − τD⁻¹d)

    While the cap is the smaller one, this is Adam, or AdamW with decoupled weight decay. Pass the mean loss of the
    mini-batch, the very value whose gradient was computed, without weight decay in it.

    Args:
        params: parameters or parameter groups, as for every torch optimizer.
        lr: the cap η on the step size γ = ρτ, ≥ 0. Default 0.01, the authors' value.
        betas: β₁ and β₂ in [0, 1). Default (0.9, 0.999), as in Adam.
        eps: ε ≥ 0, added to the root. Default 1e-8, as in Adam.
        weight_decay: λ ≥ 0 of a proximal ℓ2 penalty. Default 0.
        decoupled_weight_decay: decay as AdamW does, the authors' `divide=False`. Default False.
        learn_lower_bound: MoMo-Adam*: raise f* from `lower_bound` to what the model says that the loss can fall to.
            Default False. The bound of the first group, or of the call, is its floor.

    Example:
        >>> import torch, polyak
        >>> w = torch.nn.Parameter(torch.tensor([6.0, -2.0]))
        >>> optimizer = polyak.MoMoAdam([w], lr=1.0)
        >>> for _ in range(200):
        ...     loss = (w[0] - 4).square() + 0.5 * (w[1] - 1).square()
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     _ = optimizer.step(loss=loss)
        >>> [round(value, 2) for value in w.tolist()]
        [4.0, 1.0]

    Differences from the authors' code: the averages and the learned bound are part of the state; several groups follow
    one model, each with its own s; a batch whose loss or gradient is not finite leaves the averages as they were; v is
    float32 at least.

    Reference:
        F. Schaipp, R. Ohana, M. Eickenberg, A. Defazio, R. M. Gower, MoMo: Momentum Models for Adaptive Learning Rates,
        ICML 2024, arXiv:2305.07583, Algorithm 2; the learned bound: section 4.2.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: Cap = 1e-2,
        *,
        betas: Betas = (0.9, 0.999),
        eps: NonNegative = 1e-8,
        weight_decay: NonNegative = 0.0,
        decoupled_weight_decay: Flag = False,
        learn_lower_bound: Flag = False,
        **common: Unpack[CommonAndBuffers],
    ) -> None:
        own = {"decoupled_weight_decay": decoupled_weight_decay, "learn_lower_bound": learn_lower_bound}
        super().__init__(params, lr, betas=betas, eps=eps, weight_decay=weight_decay, **own, **common)

    takes_numbers = True
    shared = ("betas", "learn_lower_bound")
    takes_norm = needs_norm = False

    def buffers(self, group: Group) -> Sequence[str]:
        """Return the names of d and v."""
        return (AVERAGE, SQUARES)

    def averages(self) -> dict[str, float]:
        """k, f̄, p̄, the average of the bounds of calls, and f*."""
        return MODEL

    def linearize(self, line: Line, parts: list[Part], averages: dict[str, Any]) -> Line:
        """Return the averaged model along d, in the norm of D⁻¹."""
        k = averages["steps"] = averages["steps"] + 1
        group, (beta1, beta2) = parts[0].group, parts[0].group["betas"]
        for part in parts:
            part.preconditioner = adam(part.group, bias_correction(beta2, k), k)
        line = averaged(line, parts, averages, beta1, bias_correction(beta1, k), beta2)
        return learned(line, parts, averages) if group["learn_lower_bound"] else line

    def step_size(self, line: Line, group: Group) -> tuple[Scalar, Scalar]:
        """ρτ = min{ s(h/ρ − f*)₊ / ⟨d/ρ, D⁻¹d/ρ⟩, η }."""
        return growth(group) * line.gap / line.slope, group["lr"]
