"""ALI-G (Berrada, Zisserman and Kumar, ICML 2020)."""

from __future__ import annotations

from typing import Unpack, final

from torch.optim.optimizer import ParamsT

from .._backend.scalars import Scalar
from .._step.decision import Line
from .._step.optimizer import PolyakOptimizer
from .._step.options import Cap, CommonAndMomentum, Flag, NonNegative
from .._step.parts import Group


@final
class ALIG(PolyakOptimizer):
    r"""Adaptive Learning-rates for Interpolation with Gradients: one constant cap to tune, no schedule.

    .. code-block:: text

        γ = min{ ℓ(x) / (‖∇ℓ(x)‖² + δ), η }          ‖·‖ over all parameters of all groups
        x ← Π_Ω(x − γ∇ℓ(x))                          without momentum
        v ← μv − γ∇ℓ(x),  x ← Π_Ω(x − γ∇ℓ(x) + μv)   standard momentum
        v ← μv − ∇ℓ(x),   x ← Π_Ω(x − γ∇ℓ(x) + γμv)  adjusted momentum

    Pass the mean loss of the mini-batch, the very value whose gradient was computed, without weight decay in it: the
    method assumes that it can reach `lower_bound` (0 for cross-entropy without label smoothing).

    Args:
        params: parameters or parameter groups, as for every torch optimizer.
        lr: the cap η on the step size, ≥ 0; `math.inf` for none (a schedule cannot change that). Default 0.1, the
            value of the authors' CIFAR experiments. With momentum μ one gradient moves x by γ/(1 − μ) in all.
        adjusted_momentum: keep γ outside the buffer, as torch.optim.SGD does. Default False, the authors' choice.
        eps: δ ≥ 0, added to the squared norm. Default 1e-5, the authors' value.

    Example:
        >>> import torch, polyak
        >>> w = torch.nn.Parameter(torch.tensor([4.0, 1.0]))
        >>> optimizer = polyak.ALIG([w], lr=1.0, eps=0.0)
        >>> for _ in range(100):
        ...     loss = (w[0] - 2).square() + 0.5 * (w[1] - 4).square()
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     _ = optimizer.step(loss=loss)
        >>> [round(value, 3) for value in w.tolist()]
        [2.0, 4.0]

    Differences from the authors' code: the loss below its bound gives no step instead of an ascent; a loss or gradient
    that is not finite skips the step; the cap is called `lr`, so that schedulers find it; the host never waits for the
    device.

    Reference:
        L. Berrada, A. Zisserman, M. P. Kumar, Training Neural Networks for and by Interpolation, ICML 2020,
        arXiv:1906.05661, Algorithm 1; the update as one line: Comment on Stochastic Polyak Step-Size, 2021,
        arXiv:2105.10011, equation (4).
    """

    def __init__(
        self,
        params: ParamsT,
        lr: Cap = 0.1,
        *,
        adjusted_momentum: Flag = False,
        eps: NonNegative = 1e-5,
        **common: Unpack[CommonAndMomentum],
    ) -> None:
        super().__init__(params, lr, adjusted_momentum=adjusted_momentum, eps=eps, **common)

    takes_numbers = True

    def step_size(self, line: Line, group: Group) -> tuple[Scalar, Scalar]:
        """γ = min{ ℓ / (‖∇ℓ‖² + δ), η }."""
        return line.gap / (line.slope + group["eps"]), group["lr"]
