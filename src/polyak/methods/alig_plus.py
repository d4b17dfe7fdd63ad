"""ALI-G+ (Paren, Poudel and Kumar, 2022)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Unpack, final

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from .._backend.chunks import must_not_sync
from .._backend.distributed import full, is_initialized
from .._backend.scalars import Scalar, quoted
from .._backend.vector import cast
from .._step.decision import Line
from .._step.loss import Indices, as_scalar, check_single, read_loss, refuse_meta, refuse_without_loss
from .._step.optimizer import PolyakOptimizer
from .._step.options import Cap, CommonAndBuffers, Fraction, Iterations, NonNegative, Steps
from .._step.parts import Group, Part

UNSEEN = math.inf  # the loss of a sample that was in no batch yet
SAMPLES = (
    "write optimizer.step(loss=losses, indices=indices) with one loss for each sample, such as "
    "cross_entropy(..., reduction='none'), and call backward() on their mean"
)


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
        lr: the cap η on the step size, ≥ 0. Default 0.1, as that of `ALIG`.
        samples: how many samples the data set has, ≥ 1.
        steps_per_epoch: how many steps make an epoch, ≥ 1: `len(data_loader)`.
        epochs: how many epochs the training has, ≥ 1; a stage is `epochs // stages` of them, at least one.
        stages: K ≥ 1, how often the targets follow. Default 5, the authors' value.
        momentum: μ in [0, 1). Default 0.9, as in the authors' code.
        weight_decay: λ ≥ 0 of x ← (1 − λγ)x. Default 0.
        eps: δ ≥ 0. Default 1e-9, the authors' value.

    Raises:
        ValueError: an option is outside its range, a group misspells it, or `step` is given losses and indices of
            unequal number.
        TypeError: an argument does not exist, `constraint` is not a Constraint, a parameter is sparse or not
            floating-point, or `step` is given indices that are no integers.
        IndexError: an index is below 0 or not below `samples`; not checked on a device, whose numbers are not read.

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
        A. Paren, R. P. K. Poudel, M. P. Kumar, Faking Interpolation Until You Make It, TMLR 2022,
        openreview.net/forum?id=OslAMMF4ZP. It extends ALI-G, arXiv:1906.05661.
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

    def _read(
        self, closure: Callable[[], Any] | None, loss: Tensor | float | None, indices: Indices | None = None
    ) -> Tensor | float | None:
        """Return the mean loss of samples; their losses and indices, those of all processes, are kept for the step."""
        owner, groups, given = type(self).__name__, self.param_groups, read_loss(self, closure, loss)
        if given is None:
            refuse_without_loss(owner, groups, SAMPLES)
            return None
        like = groups[0]["step_size"] if groups else torch.zeros((), device="cpu")
        losses = (full(given.detach()).to_dense() if isinstance(given, Tensor) else as_scalar(given, like)).reshape(-1)
        if losses.is_meta and not like.is_meta:
            refuse_meta("loss")
        samples = read_indices(owner, indices, like.device)
        if losses.is_complex():
            check_single(losses)
        if len(losses) != len(samples) or not len(losses):
            shape = tuple(given.shape) if isinstance(given, Tensor) else ()
            raise ValueError(
                f"{owner}: the loss needs one value for each of {len(samples)} indices, but its shape is {shape}: "
                f"{SAMPLES}."
            )
        check_indices(owner, samples, len(groups[0]["targets"]) if groups else 1)
        losses, samples = cast(losses, like), samples.long()
        if self._sync_loss and is_initialized():
            losses, samples = self._processes.gather(losses, samples)
        self._watched.samples = losses, samples
        return losses.mean()

    def averages(self) -> dict[str, Any]:
        """The number of steps and, for every sample, A, Δ, its last loss and its loss in the best epoch."""
        first = {"targets": 0.0, "target_steps": 0.0, "last_losses": UNSEEN, "best_losses": UNSEEN}
        samples = self.defaults["samples"]
        return {"steps": 0} | {name: torch.tensor(a, device="cpu").expand(samples) for name, a in first.items()}

    def linearize(self, line: Line, parts: list[Part], averages: dict[str, Any]) -> Line:
        """Return the line along the gradient, above the samples' mean target."""
        for part in parts:
            part.coupled_decay = part.group["weight_decay"]
        group, (losses, indices) = parts[0].group, self._watched.samples
        bound, targets = line.above(parts[0]).lower_bound, averages["targets"]
        t = averages["steps"] = averages["steps"] + 1
        losses, indices = losses.to(targets), indices.to(targets.device)  # the model may have been moved since
        last, best = latest(averages["last_losses"], indices, losses - bound), averages["best_losses"]
        steps = math.ceil(group["steps_per_epoch"])
        epoch = t % steps == 0
        if epoch is not False:
            best = torch.where(is_better(last, best) & epoch, last, best)
            stage = t % (steps * max(group["epochs"] // group["stages"], 1)) == 0
            averages |= revised(targets, averages["target_steps"], best, stage)
        averages["last_losses"], averages["best_losses"] = last, best
        return line._replace(lower_bound=bound + targets[indices].mean())

    def step_size(self, line: Line, group: Group) -> tuple[Scalar, Scalar]:
        """γ = min{ (mean(ℓᵢ − Aᵢ))₊ / (‖∇f‖² + δ), η }."""
        return line.gap / (line.slope + group["eps"]), group["lr"]


def latest(last: Tensor, indices: Tensor, losses: Tensor) -> Tensor:
    """Return the last losses of all samples, given some new ones; of one sample, the mean."""
    new = torch.stack([losses, torch.ones_like(losses)])
    sums, counts = last.new_zeros(2, len(last)).index_add(1, indices, new)  # expanded zeros: Inductor adds both rows up
    return torch.where(counts > 0, sums / counts, last)


def is_better(last: Tensor, best: Tensor) -> Tensor:
    """Return whether the losses are of more samples than the best ones, or of as many and smaller in the mean."""
    seen, before = last < UNSEEN, best < UNSEEN
    mean, lowest = (torch.where(losses < UNSEEN, losses / len(losses), 0.0).sum() for losses in (last, best))
    return (seen.sum() > before.sum()) | ((seen.sum() == before.sum()) & (mean < lowest))


def revised(targets: Tensor, steps: Tensor, best: Tensor, stage: Any) -> dict[str, Tensor]:
    """Lower the targets that were reached by half of their last increase, and raise the others half way."""
    reached = best <= targets
    revise = torch.as_tensor(stage, device=best.device) & (best < UNSEEN)
    deltas = torch.where(reached, steps, (best - targets).clamp(min=0.0) / 2)
    moved = torch.where(reached, (targets - deltas / 2).clamp(min=0.0), (targets + best) / 2)
    return {"targets": torch.where(revise, moved, targets), "target_steps": torch.where(revise, deltas, steps)}


def read_indices(owner: str, indices: Any, device: torch.device) -> Tensor:
    """Return indices as a vector, empty without any."""
    try:
        return torch.as_tensor([] if indices is None else indices, device=device).reshape(-1)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{owner}: indices are a tensor or a list of integers, but not {quoted(indices)}.") from error


def check_indices(owner: str, indices: Tensor, samples: int) -> None:
    """Raise unless the indices are those of samples; on a device they are not read."""
    if indices.dtype not in (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8):
        raise TypeError(f"{owner}: indices are integers, but {indices.dtype} was given.")
    if not must_not_sync(indices.device) and not 0 <= int(indices.min()) <= int(indices.max()) < samples:
        raise IndexError(
            f"{owner}: the indices are from {int(indices.min())} to {int(indices.max())}, but samples={samples}: count "
            "the samples of the data set from 0."
        )
