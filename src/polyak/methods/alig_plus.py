"""ALI-G+ (Paren, Poudel and Kumar, 2022)."""

from __future__ import annotations

from typing import Any, Unpack, final

import torch
from torch.optim.optimizer import ParamsT

from .._backend.scalars import Scalar
from .._step.decision import Line
from .._step.lines import above_targets
from .._step.loss import read_losses
from .._step.optimizer import PolyakOptimizer
from .._step.options import Cap, CommonAndBuffers, Fraction, Iterations, NonNegative, Steps
from .._step.parts import Group, Part
from .._step.state import UNSEEN


@final
class ALIGPlus(PolyakOptimizer):
    r"""ALI-G with a target for the loss of every sample, learned where the network cannot fit its data.

    .. code-block:: text

        γ = min{ (mean(ℓᵢ − Aᵢ))₊ / (‖∇f(x)‖² + δ), η }
        v ← μv − γ∇f(x),  x ← Π((1 − λγ)x − γ∇f(x) + μv)
        after each of K stages, with the losses ℓ̄ of the best epoch:
            Aᵢ ← (Aᵢ − Δᵢ/2)₊ if ℓ̄ᵢ ≤ Aᵢ;  else Δᵢ ← (ℓ̄ᵢ − Aᵢ)/2,  Aᵢ ← (Aᵢ + ℓ̄ᵢ)/2

    Pass the losses of the samples, of whose mean the gradient was computed, and the samples' numbers in the data set:
    `step(loss=losses, indices=indices)`. The state has four numbers for every sample. On several processes the losses
    and indices of all of them enter the targets, so every process needs a batch of the same size, and the state is the
    same everywhere. A watched loss is one number, so it serves batches of one sample alone.

    Args:
        params: parameters or parameter groups, as for every torch optimizer.
        lr: the cap η on the step size, ≥ 0. Default 0.1.
        samples: how many samples the data set has.
        steps_per_epoch: how many steps make an epoch.
        epochs: how many epochs the training has; a stage is `epochs // stages` of them.
        stages: K, how often the targets follow. Default 5, the authors' value.
        momentum: μ in [0, 1). Default 0.9, as in the authors' code.
        weight_decay: λ ≥ 0 of x ← (1 − λγ)x. Default 0.
        eps: δ ≥ 0. Default 1e-9, the authors' value.

    Example:
        >>> import torch, polyak
        >>> x, y = torch.randn(8, 2), torch.randn(8)
        >>> w = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = polyak.ALIGPlus([w], samples=8, steps_per_epoch=2, epochs=10)
        >>> for epoch in range(10):
        ...     for indices in torch.randperm(8).split(4):
        ...         losses = (x[indices] @ w - y[indices]).square()
        ...         optimizer.zero_grad()
        ...         losses.mean().backward()
        ...         loss = optimizer.step(loss=losses, indices=indices)
        >>> optimizer.param_groups[0]["targets"].shape
        torch.Size([8])

    Differences from the authors' code: ℓ̄ is the best epoch's, not the last one's; a sample that was in no batch keeps
    its target; targets lie above `lower_bound`, that of the first group; they are part of the state, and a batch that
    is not finite leaves them as they were.

    Reference:
        A. Paren, R. P. K. Poudel, M. P. Kumar, Faking Interpolation Until You Make It, TMLR 2022. It extends ALI-G,
        arXiv:1906.05661.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: Cap = 0.1,
        *,
        samples: Iterations,
        steps_per_epoch: Steps,
        epochs: Iterations,
        stages: Iterations = 5,
        momentum: Fraction = 0.9,
        weight_decay: NonNegative = 0.0,
        eps: NonNegative = 1e-9,
        **common: Unpack[CommonAndBuffers],
    ) -> None:
        own: dict[str, Any] = {"samples": samples, "epochs": epochs, "stages": stages, "weight_decay": weight_decay}
        super().__init__(params, lr, momentum=momentum, steps_per_epoch=steps_per_epoch, eps=eps, **own, **common)

    takes_numbers = True
    shared = ("samples", "steps_per_epoch", "epochs", "stages")
    _read = read_losses

    def averages(self) -> dict[str, Any]:
        """The number of steps and, for every sample, A, Δ, its last loss and its loss in the best epoch."""
        zeros, unseen = (torch.tensor(first).expand(self.defaults["samples"]) for first in (0.0, UNSEEN))
        tables = {"targets": zeros, "target_steps": zeros, "last_losses": unseen, "best_losses": unseen}
        return {"steps": 0, **tables}

    def linearize(self, line: Line, parts: list[Part], averages: dict[str, Any]) -> Line:
        """Return the line along the gradient, above the samples' mean target."""
        for part in parts:
            part.coupled_decay = part.group["weight_decay"]
        return above_targets(self, line, parts, averages)

    def step_size(self, line: Line, group: Group) -> tuple[Scalar, Scalar]:
        """γ = min{ (mean(ℓᵢ − Aᵢ))₊ / (‖∇f‖² + δ), η }."""
        return line.gap / (line.slope + group["eps"]), group["lr"]
