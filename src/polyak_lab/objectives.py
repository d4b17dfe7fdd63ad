"""Losses by name, and how each counts a right answer."""

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Objective:
    """A mean loss over a batch; `correct` counts correct predictions, None if there are none."""

    loss: Callable[[Tensor, Tensor], Tensor]
    correct: Callable[[Tensor, Tensor], Tensor] | None
    perplexity: bool = False
    """Whether exp(loss) is a score."""

    def count_correct(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        """Count right answers on the device, if this objective has any."""
        return None if self.correct is None else self.correct(outputs, targets)


def _logistic(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.softplus(-targets * outputs.squeeze(1)).mean()


def _squared(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.mse_loss(outputs, targets.view_as(outputs))


def _next_token(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())


def _same_class(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(1) == targets).sum()


def _same_sign(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.squeeze(1) * targets > 0).sum()


OBJECTIVES = {
    "cross_entropy": Objective(F.cross_entropy, _same_class),
    "logistic": Objective(_logistic, _same_sign),
    "squared": Objective(_squared, None),
    "next_token": Objective(_next_token, None, perplexity=True),
}
