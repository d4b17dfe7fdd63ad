"""The training loop of one run: steps, evaluation and a checkpoint in every epoch."""

from collections.abc import Callable, Iterable
from time import perf_counter
from typing import Any

import torch
from torch.nn.utils import get_total_norm

from polyak_lab.config.run import AUGMENTED_VALIDATION, Run
from polyak_lab.optimizers import current_lr, measured_radius, set_mode
from polyak_lab.processes import group
from polyak_lab.processes.sharding import whole
from polyak_lab.progress import Progress
from polyak_lab.runs.folder import RunFolder
from polyak_lab.training.batches import Batch, derive_seed
from polyak_lab.training.build import build_session
from polyak_lab.training.cuda_graph import GraphedStep, is_replayed
from polyak_lab.training.determinism import deterministic
from polyak_lab.training.failures import explain_oom, own_errors
from polyak_lab.training.metrics import Meter, Scores
from polyak_lab.training.session import Session
from polyak_lab.training.step import StepResult, train_step

Record = dict[str, Any]
StepFunction = Callable[[Session, Batch, float], StepResult]


def train(run: Run, folder: RunFolder, progress: Progress) -> None:
    """Train a resolved run to its end, from its checkpoint if there is one."""
    with folder.opened() as (finished, threads):
        if finished:
            return
        with deterministic(run.training.device, threads), explain_oom(run.training):
            with own_errors(run):
                session = build_session(run)
            _train_epochs(session, folder, progress)
    progress.run_finished(folder.records[-1], folder.seconds)


def _train_epochs(session: Session, folder: RunFolder, progress: Progress) -> None:
    folder.resume(session)
    done, epochs = len(folder.records), session.run.training.epochs
    progress.run_started(epochs, session.steps_per_epoch, done)
    step = choose_step(session.run)
    for epoch in range(done, epochs):
        with own_errors(session.run):
            record, timing = _run_epoch(session, step, epoch, progress)
        folder.commit(session, record, timing)
        progress.epoch_done(record, timing)
    folder.finish()


def choose_step(run: Run) -> StepFunction:
    """Return the function that takes the steps of a run: directly, or by replaying a CUDA graph."""
    return GraphedStep() if is_replayed(run.training) else train_step


def _run_epoch(
    session: Session,
    step: StepFunction,
    epoch: int,
    progress: Progress,
) -> tuple[Record, Record]:
    start = perf_counter()
    meter = train_epoch(session, step, epoch, progress)
    record = {"epoch": epoch + 1, "train_loss": meter.loss(), "train_accuracy": meter.accuracy()}
    trained = perf_counter()
    record |= _evaluate(session, epoch) | meter.means()
    record["lr"] = float(current_lr(session.optimizer))
    record["weight_norm"] = float(whole(get_total_norm(list(session.model.parameters()))))
    if (radius := measured_radius(session.optimizer)) is not None:
        record["ball_radius"] = radius
    timing = {
        "epoch": epoch + 1,
        "seconds": trained - start,
        "evaluation_seconds": perf_counter() - trained,
        "images_per_second": meter.samples() / (trained - start),
    }
    return record, timing


def train_epoch(session: Session, step: StepFunction, epoch: int, progress: Progress) -> Meter:
    """Train for one epoch; nothing is read from the device until it ends."""
    torch.manual_seed(_dropout_seed(session.run.training.seed, epoch))
    session.model.train()
    set_mode(session.optimizer, training=True)
    meter = Meter()
    for batch, samples in session.sized_batches(epoch):
        result = step(session, batch, group.loss_weight(samples))
        meter.add_step(result.info)
        meter.add(result.loss, result.correct, len(batch[1]))
        if session.schedule is not None:
            session.schedule.step()
        progress.step(epoch, meter)
    group.broadcast_buffers(session.model)
    return meter


def _dropout_seed(seed: int, epoch: int) -> int:
    """Return the seed of random layers such as dropout, which differs between ranks."""
    own = f" {group.rank()}" if group.rank() else ""
    return derive_seed(f"layers{own}", seed, epoch)


def _evaluate(session: Session, epoch: int) -> Record:
    record = _scores("test", session, session.test_batches(epoch))
    if session.dataset.validation is not None:
        record |= _scores("validation", session, session.validation_batches())
    if session.run.training.eval_protocol == AUGMENTED_VALIDATION:
        augmented = _evaluate_batches(session, session.test_batches(epoch, augmented=True))
        record |= {"test_loss_augmented": augmented.loss(), "test_accuracy_augmented": augmented.accuracy()}
    return record


def _scores(split: str, session: Session, batches: Iterable[Batch]) -> Record:
    scores = _evaluate_batches(session, batches)
    record = {f"{split}_loss": scores.loss(), f"{split}_accuracy": scores.accuracy()}
    if session.objective.perplexity:
        record[f"{split}_perplexity"] = scores.perplexity()
    return record


@torch.no_grad()
def _evaluate_batches(session: Session, batches: Iterable[Batch]) -> Scores:
    session.model.eval()
    set_mode(session.optimizer, training=False)
    scores = Scores()
    for inputs, targets in batches:
        outputs = session.outputs(inputs)
        correct = session.objective.count_correct(outputs, targets)
        scores.add(session.loss(outputs, targets), correct, len(targets))
    return scores
