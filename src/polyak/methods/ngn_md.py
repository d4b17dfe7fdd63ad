"""NGN-MDv1, NGN with momentum and Adam's preconditioner (Islamov et al., NeurIPS 2025)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack, final

from torch.optim.optimizer import ParamsT

from .._backend.moves import MOMENTUM, Form
from .._backend.scalars import Scalar, where
from .._backend.vector import SQUARES
from .._step.decision import Line
from .._step.lines import count_steps, dampened, decay_of, precondition
from .._step.optimizer import PolyakOptimizer
from .._step.options import Betas, Cap, CommonAndBuffers, NonNegative
from .._step.parts import Group, Part


@final
class NGNMD(PolyakOptimizer):
    r"""Non-negative Gauss-Newton step with momentum, in the norm of Adam's preconditioner (NGN-MDv1).

    .. code-block:: text

        v ← β₂v + (1 − β₂)∇f(x)²      D = ε + √(v / (1 − β₂ᵏ))
        γ = c / (1 + c⟨∇f(x), D⁻¹∇f(x)⟩ / (2(f(x) − f*)))
        u ← β₁u − (1 − β₁)γD⁻¹∇f(x)   x ← Π((1 − cλ)x + u)

    Pass the mean loss of the mini-batch, the very value whose gradient was computed, without weight decay in it.

    Args:
        params: parameters or parameter groups, as for every torch optimizer.
        lr: the soft cap c, ≥ 0, which γ approaches for a large loss. Default 0.1, our choice; the authors tune it.
        betas: β₁ of the heavy ball and β₂ of the squares, in [0, 1). Default (0.9, 0.999), the authors' values.
        eps: ε ≥ 0, added to the root. Default 1e-8, the authors' value.
        weight_decay: λ ≥ 0, decoupled as in AdamW. Default 0.

    Example:
        >>> import torch, polyak
        >>> w = torch.nn.Parameter(torch.tensor([1.0, -5.0]))
        >>> optimizer = polyak.NGNMD([w], lr=1.0)
        >>> for _ in range(400):
        ...     loss = (w[0] + 1).square() + 0.5 * (w[1] + 2).square()
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     _ = optimizer.step(loss=loss)
        >>> [round(value, 2) for value in w.tolist()]
        [-1.0, -2.0]

    Differences from the paper: a known lower bound is subtracted from the loss; v is float32 at least.

    Reference:
        R. Islamov, N. Ajroldi, A. Orvieto, A. Lucchi, Enhancing Optimizer Stability: Momentum Adaptation of The NGN
        Step-size, NeurIPS 2025, arXiv:2508.15071, Algorithm 2, NGN-MDv1.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: Cap = 0.1,
        *,
        betas: Betas = (0.9, 0.999),
        eps: NonNegative = 1e-8,
        weight_decay: NonNegative = 0.0,
        **common: Unpack[CommonAndBuffers],
    ) -> None:
        super().__init__(params, lr, betas=betas, eps=eps, weight_decay=weight_decay, **common)

    takes_numbers, momentum_form, averages = True, Form.HEAVY_BALL, count_steps
    shared = ("betas",)
    takes_norm = needs_norm = False

    def buffers(self, group: Group) -> Sequence[str]:
        """Return the names of u and v."""
        return (MOMENTUM, SQUARES)

    def linearize(self, line: Line, parts: list[Part], averages: dict[str, Any]) -> Line:
        """Return the line along D⁻¹∇f, whose step the heavy ball multiplies by 1 − β₁."""
        k = averages["steps"] = averages["steps"] + 1
        beta1, beta2 = parts[0].group["betas"]
        for part in parts:
            part.mu = beta1
            if part.group["weight_decay"]:
                part.decay = 1.0 - decay_of(part.group)
        return dampened(self, precondition(line, parts, k, beta2), parts, averages)

    def step_size(self, line: Line, group: Group) -> tuple[Scalar, Scalar]:
        """γ = 2(f − f*) / (2(f − f*)/c + ⟨∇f, D⁻¹∇f⟩)."""
        ratio = 2.0 * line.gap / (2.0 * line.gap / group["lr"] + line.slope)
        return where(line.gap > 0, ratio, line.gap), group["lr"]  # 0 / 0 if lr is 0, too
