"""What an epoch measured, kept on the device until the epoch ends: reading a number makes a GPU wait."""

from collections.abc import Sequence

import torch
from torch import Tensor

from polyak_lab.optimizers import Observed
from polyak_lab.processes import group as processes


class Scores:
    """Losses and right answers of the batches seen so far; the sums are over all processes."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.correct: list[Tensor] = []
        self.sizes: list[int] = []

    def add(self, loss: Tensor, correct: Tensor | None, size: int) -> None:
        """Note one batch."""
        self.losses.append(loss.detach())
        self.sizes.append(size)
        if correct is not None:
            self.correct.append(correct)

    def loss(self) -> float:
        """Average the loss over the samples (the last batch may be smaller than the others)."""
        losses = torch.stack(self.losses).cpu().double()
        summed = float(losses @ torch.tensor(self.sizes, dtype=torch.float64))
        return processes.total(summed) / self.samples()

    def perplexity(self) -> float:
        """Return exp(loss), infinity where that is too large a number."""
        return float(torch.tensor(self.loss(), dtype=torch.float64).exp())

    def accuracy(self) -> float | None:
        """Count right answers over samples; None where there are no answers to count."""
        if not self.correct:
            return None
        return processes.total(int(torch.stack(self.correct).sum())) / self.samples()

    def samples(self) -> float:
        """Count the samples seen."""
        return processes.total(sum(self.sizes))


class Meter(Scores):
    """The scores of a training epoch, and what its steps did."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Observed] = []

    def add_step(self, observed: Observed) -> None:
        """Note one step."""
        self.steps.append(observed)

    def means(self) -> dict[str, float | None]:
        """Average step size, capped fraction and skipped fraction over the steps."""
        return {field: mean([getattr(step, field) for step in self.steps]) for field in Observed._fields}

    def latest(self) -> tuple[float, float | None, float]:
        """Read loss, accuracy and step size of the last step: for a progress bar, a few times a second."""
        accuracy = int(self.correct[-1]) / self.sizes[-1] if self.correct else None
        return float(self.losses[-1]), accuracy, float(self.steps[-1].step_size)


def mean(values: Sequence[float | Tensor | None]) -> float | None:
    """Average numbers, or 0-dim tensors with one read from the device."""
    if any(value is None for value in values):
        return None
    tensors = [value for value in values if isinstance(value, Tensor)]
    stacked = torch.stack(tensors).cpu() if tensors else torch.tensor(values, dtype=torch.float64)
    return float(stacked.double().mean())
