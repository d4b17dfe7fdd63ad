"""One training step: forward, backward and optimizer step."""

from typing import NamedTuple

from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from polyak_lab.optimizers import StepInfo, take_step
from polyak_lab.training.batches import Batch
from polyak_lab.training.session import Session


class StepResult(NamedTuple):
    """The outcome of a training step, still on the device."""

    loss: Tensor
    correct: Tensor | None
    info: StepInfo


def train_step(session: Session, batch: Batch, weight: float) -> StepResult:
    """Train on this rank's part of a batch; `weight` is the factor of its loss."""
    inputs, targets = batch
    outputs = session.outputs(inputs)
    loss = session.loss(outputs, targets)
    weighted = loss if weight == 1 else weight * loss
    session.optimizer.zero_grad()
    weighted.backward()
    max_norm = session.run.training.clip_norm
    norm = None if max_norm is None else clip_grad_norm_(session.model.parameters(), max_norm)
    info = take_step(session.optimizer, weighted, None if norm is None else norm.square())
    return StepResult(loss.detach(), session.objective.count_correct(outputs, targets), info)
