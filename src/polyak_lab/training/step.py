"""One training step: forward, backward, and the optimizer's move."""

from typing import NamedTuple

from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from polyak_lab.optimizers import Observed, advance
from polyak_lab.training.batches import Batch
from polyak_lab.training.session import Session


class Step(NamedTuple):
    """What a step saw and did, still on the device."""

    loss: Tensor
    correct: Tensor | None
    observed: Observed


def make(this: Session, batch: Batch, weight: float) -> Step:
    """Make one step on this process's share of a batch, whose weight is 1 where the shares are equal."""
    inputs, targets = batch
    outputs = this.outputs(inputs)
    loss = this.loss(outputs, targets)
    weighted = loss if weight == 1 else weight * loss
    this.optimizer.zero_grad()
    weighted.backward()
    limit = this.run.training.clip_norm
    grad_sq_norm = None if limit is None else clip_grad_norm_(this.model.parameters(), limit).square()
    observed = advance(this.optimizer, weighted, grad_sq_norm)
    return Step(loss.detach(), this.objective.right_answers(outputs, targets), observed)
