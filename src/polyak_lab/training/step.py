"""One training step: forward, backward and optimizer step."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

import polyak
from polyak_lab.errors import RowError
from polyak_lab.optimizers import StepInfo, current_lr, info_of, take_step
from polyak_lab.processes import group
from polyak_lab.processes.sharding import whole
from polyak_lab.training.batches import Batch
from polyak_lab.training.session import Session


class StepResult(NamedTuple):
    """The outcome of a training step, still on the device."""

    loss: Tensor
    correct: Tensor | None
    info: StepInfo


def train_step(session: Session, batch: Batch, weight: float) -> StepResult:
    """Train on this rank's part of a batch; `weight` is the factor of its loss."""
    if session.step_form == "closure":
        return _step_with_closure(session, batch, weight)
    loss, correct, weighted = _backward(session, batch, weight)
    max_norm = session.run.training.clip_norm
    norm = None if max_norm is None else whole(clip_grad_norm_(session.model.parameters(), max_norm))
    if session.step_form == "loss":
        weighted = group.mean_over_ranks(weighted)
    info = take_step(session.optimizer, weighted, None if norm is None else norm.square(), session.step_form)
    return StepResult(loss, correct, info)


def _backward(session: Session, batch: Batch, weight: float) -> tuple[Tensor, Tensor | None, Tensor]:
    """Compute the gradient; return the loss, the correct predictions, and the loss that was differentiated."""
    inputs, targets = batch
    outputs = session.outputs(inputs)
    loss = session.loss(outputs, targets)
    weighted = loss if weight == 1 else weight * loss
    session.optimizer.zero_grad()
    weighted.backward()
    return loss.detach(), session.objective.count_correct(outputs, targets), weighted


def _step_with_closure(session: Session, batch: Batch, weight: float) -> StepResult:
    """Let the optimizer evaluate the batch, as often as it needs to; the first evaluation is recorded."""
    seen: list[tuple[Tensor, Tensor | None]] = []
    max_norm = session.run.training.clip_norm

    @torch.enable_grad()
    def closure() -> Tensor:
        loss, correct, weighted = _backward(session, batch, weight)
        if max_norm is not None:
            clip_grad_norm_(session.model.parameters(), max_norm)
        seen.append((loss, correct))
        return group.mean_over_ranks(weighted)

    step_size = current_lr(session.optimizer)
    session.optimizer.step(closure)  # type: ignore[arg-type]
    if not seen:
        raise RowError(f"optimizer {session.run.optimizer.name!r} did not call its closure.")
    if isinstance(session.optimizer, polyak.PolyakOptimizer):
        return StepResult(*seen[0], info_of(session.optimizer))
    return StepResult(*seen[0], StepInfo(step_size))
