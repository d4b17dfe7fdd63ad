"""SAM-SPS and USAM-SPS (Oikonomou and Loizou, 2026)."""

from __future__ import annotations

from typing import Any, Unpack, final

from torch.optim.optimizer import ParamsT

from .._backend.scalars import Scalar, where
from .._step.decision import Line
from .._step.loss import read_again, read_first
from .._step.optimizer import PolyakOptimizer
from .._step.options import Cap, Common, Flag, NonNegative
from .._step.parts import Group, Part, sum_squares


@final
class SAMSPS(PolyakOptimizer):
    r"""Sharpness-aware minimisation (SAM) with a Polyak step: each step evaluates the batch twice.

    .. code-block:: text

        e = x + ρ ∇f(x) / ‖∇f(x)‖;  unnormalised (USAM), e = x + ρ ∇f(x)
        γ = min{ (f(e) − f* − ⟨∇f(e), e − x⟩)₊ / ‖∇f(e)‖², γ_b }
        x ← Π((1 − λγ)x − γ∇f(e))

    `step` needs a closure that calls `zero_grad()`, computes the mean loss of the mini-batch without weight decay in
    it, calls `backward()` and returns the loss; the step returns f(x). Both evaluations draw the same numbers from
    torch's generators. Of the changes to buffers, such as the running statistics of batch norm, only those of the first
    evaluation stay, in every module that holds one of the parameters, at any depth. A GradScaler takes no closure: use
    bfloat16 instead of float16.

    Args:
        params: parameters or parameter groups, as for every torch optimizer.
        lr: a cap γ_b on the step size, ≥ 0. Default 1, the authors' value.
        rho: ρ ≥ 0, how far the second evaluation is away. Default 0.1, the authors' value.
        normalized: whether that is the distance to e (SAM); else ρ multiplies the gradient (USAM). Default True.
        weight_decay: λ ≥ 0 of x ← (1 − λγ)x. Default 0.

    Example:
        >>> import torch, polyak
        >>> w = torch.nn.Parameter(torch.tensor([3.0, -5.0]))
        >>> optimizer = polyak.SAMSPS([w])
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = (w[0] - 1).square() + 0.5 * (w[1] + 2).square()
        ...     loss.backward()
        ...     return loss
        >>> for _ in range(50):
        ...     _ = optimizer.step(closure)
        >>> bool(optimizer.step(closure) < 0.1)  # from 8.5
        True

    Differences from the authors' code: the step returns f(x), not f(e); x is restored exactly, even if the closure
    raises an error; a batch that is not finite at x or at e moves nothing; weight decay is off by default; the
    constraint is ours.

    Reference:
        D. Oikonomou, N. Loizou, Adaptive Sharpness-Aware Minimization with a Polyak-type Step size: A Theory-Grounded
        Scheduler, ICML 2026, arXiv:2606.01827, SAM-SPS and USAM-SPS.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: Cap = 1.0,
        *,
        rho: NonNegative = 0.1,
        normalized: Flag = True,
        weight_decay: NonNegative = 0.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, lr, rho=rho, normalized=normalized, weight_decay=weight_decay, **common)

    takes_numbers = True
    takes_norm = False
    _read = read_first

    def linearize(self, line: Line, parts: list[Part], averages: dict[str, Any]) -> Line:
        """Return the line from x along ∇f(e)."""
        norm = where(line.slope > 0, line.slope, 1.0) ** 0.5
        unit = where(line.slope > 0, 1.0 / norm, 0.0)
        lengths = [part.group["rho"] * (unit if part.group["normalized"] else 1.0) for part in parts]
        value, climb = read_again(self, parts, lengths)
        for part in parts:
            part.coupled_decay = part.group["weight_decay"]
        return Line(value - climb, sum_squares(parts, value), line.lower_bound)

    def step_size(self, line: Line, group: Group) -> tuple[Scalar, Scalar]:
        """γ = min{ (f(e) − f* − ⟨∇f(e), e − x⟩)₊ / ‖∇f(e)‖², γ_b }."""
        return line.gap / line.slope, group["lr"]
