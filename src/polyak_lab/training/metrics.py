"""Metrics of an epoch, kept on the device until it ends, since reading synchronises."""

from collections.abc import Sequence

import torch
from torch import Tensor

from polyak_lab.optimizers import StepInfo
from polyak_lab.processes import group


class Scores:
    """Losses and correct predictions of the batches so far, summed over all ranks."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.correct: list[Tensor] = []
        self.sizes: list[int] = []

    def add(self, loss: Tensor, correct: Tensor | None, size: int) -> None:
        """Add a batch."""
        self.losses.append(loss.detach())
        self.sizes.append(size)
        if correct is not None:
            self.correct.append(correct)

    def loss(self) -> float:
        """Return the mean loss over the samples."""
        losses = torch.stack(self.losses).cpu().double()
        total = float(losses @ torch.tensor(self.sizes, dtype=torch.float64))
        return group.all_reduce_sum(total) / self.samples()

    def perplexity(self) -> float:
        """Return exp(loss), or infinity if that overflows."""
        return float(torch.tensor(self.loss(), dtype=torch.float64).exp())

    def accuracy(self) -> float | None:
        """Return the fraction of correct predictions; None if the objective does not count them."""
        if not self.correct:
            return None
        return group.all_reduce_sum(int(torch.stack(self.correct).sum())) / self.samples()

    def samples(self) -> float:
        """Return the number of samples."""
        return group.all_reduce_sum(sum(self.sizes))


class Meter(Scores):
    """The scores of a training epoch, and the means over its steps."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[StepInfo] = []

    def add_step(self, info: StepInfo) -> None:
        """Add a step."""
        self.steps.append(info)

    def means(self) -> dict[str, float | None]:
        """Return the mean step size and gradient norm, and the fractions of capped and of skipped steps."""
        return {name: mean([getattr(step, name) for step in self.steps]) for name in StepInfo._fields}

    def latest(self) -> tuple[float, float | None, float]:
        """Read loss, accuracy and step size of the last step, for a progress bar."""
        accuracy = int(self.correct[-1]) / self.sizes[-1] if self.correct else None
        return float(self.losses[-1]), accuracy, float(self.steps[-1].step_size)


def mean(values: Sequence[float | Tensor | None]) -> float | None:
    """Return the mean of numbers or of 0-dim tensors, which are read from the device at once."""
    if any(value is None for value in values):
        return None
    tensors = [value for value in values if isinstance(value, Tensor)]
    stacked = torch.stack(tensors).cpu() if tensors else torch.tensor(values, dtype=torch.float64)
    return float(stacked.double().mean())
