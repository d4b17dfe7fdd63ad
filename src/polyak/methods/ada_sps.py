"""AdaSPS (Jiang and Stich, NeurIPS 2023)."""

from __future__ import annotations

import math
from typing import Unpack, final

from torch.optim.optimizer import ParamsT

from .._backend.scalars import Scalar, minimum, where
from .._step.decision import Line
from .._step.optimizer import PolyakOptimizer
from .._step.options import Cap, Common, Positive
from .._step.parts import Group


@final
class AdaSPS(PolyakOptimizer):
    r"""Adaptive stochastic Polyak step size: converges with and without interpolation.

    .. code-block:: text

        γ_t = min{ (f(x) − ℓ*)₊ / (c‖∇f(x)‖² √(Σ_{s≤t} (f_s − ℓ*)₊)), γ_{t−1}, γ_b }
        x ← Π(x − γ_t∇f(x))

    Pass the mean loss of the mini-batch, the very value whose gradient was computed; ℓ* is any bound of it from below.

    Args:
        params: parameters or parameter groups, as for every torch optimizer.
        lr: a cap γ_b on the step size, ≥ 0. Default `math.inf`, none, as in the paper.
        c: scale of the squared norm, > 0. Default 1, our choice. For s times the loss, c/√s gives the same points.

    Example:
        >>> import torch, polyak
        >>> w = torch.nn.Parameter(torch.tensor([4.0, -2.0]))
        >>> optimizer = polyak.AdaSPS([w], c=0.2)
        >>> for _ in range(600):
        ...     loss = (w[0] - 2).square() + 0.5 * (w[1] - 1).square()
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     _ = optimizer.step(loss=loss)
        >>> [round(value, 2) for value in w.tolist()]
        [2.0, 1.0]

    Differences from the paper: a batch of zero loss or gradient leaves γ_{t−1} as it is, instead of ending the run.

    Reference:
        X. Jiang, S. U. Stich, Adaptive SGD with Polyak stepsize and Line-search: Robust Convergence and Variance
        Reduction, NeurIPS 2023, arXiv:2308.06058, equation (AdaSPS).
    """

    def __init__(self, params: ParamsT, lr: Cap = math.inf, *, c: Positive = 1.0, **common: Unpack[Common]) -> None:
        super().__init__(params, lr, c=c, **common)

    takes_numbers = True

    def memory(self, group: Group) -> dict[str, float]:
        """Σ(f_s − ℓ*)₊, and γ_{t−1}."""
        return {"gap_sum": 0.0, "previous_step_size": math.inf}

    def step_size(self, line: Line, group: Group) -> tuple[Scalar, Scalar]:
        """γ_t = min{ (f − ℓ*)₊ / (c‖∇f‖² √Σ), γ_{t−1}, γ_b }."""
        gap, total = line.gap, group["gap_sum"] + line.gap
        ratio = where(gap > 0, gap / (group["c"] * line.slope * total**0.5), gap)
        cap = minimum(group["previous_step_size"], group["lr"])
        group["gap_sum"], group["previous_step_size"] = total, minimum(ratio, cap)
        return ratio, cap
