"""One training run: epochs of steps, a score after each, a checkpoint after each."""

from collections.abc import Callable, Iterable
from time import perf_counter
from typing import Any

import torch
from torch.nn.utils import get_total_norm

from polyak_lab.config.run import AUGMENTED_VALIDATION, Run
from polyak_lab.processes import group as processes
from polyak_lab.progress import Progress
from polyak_lab.runs.folder import RunFolder
from polyak_lab.training import build, memory, step
from polyak_lab.training import cuda_graph as graph
from polyak_lab.training.batches import Batch, stream_seed
from polyak_lab.training.determinism import settled
from polyak_lab.training.metrics import Meter, Scores
from polyak_lab.training.session import Session
from polyak_lab.training.step import Step

Record = dict[str, Any]
MakeStep = Callable[[Session, Batch, float], Step]


def train(run: Run, folder: RunFolder, progress: Progress) -> None:
    """Train a resolved run to its end, from its checkpoint if it has one; a finished run is left as it is."""
    with folder.opened() as (finished, threads):
        if finished:
            return
        with settled(run.training.device, threads), memory.hinted(run.training):
            _train(build.start(run), folder, progress)
    progress.run_finished(folder.records[-1], folder.seconds)


def _train(this: Session, folder: RunFolder, progress: Progress) -> None:
    folder.resume(this)
    done, epochs = len(folder.records), this.run.training.epochs
    progress.run_started(epochs, this.steps_per_epoch, done)
    make_step = step_maker(this.run)
    for epoch in range(done, epochs):
        record, timing = _epoch(this, make_step, epoch, progress)
        folder.commit(this, record, timing)
        progress.epoch_done(record, timing)
    folder.finish()


def step_maker(run: Run) -> MakeStep:
    """Choose how a run makes its steps: one by one, or by replaying a CUDA graph."""
    return graph.Recorder() if run.training.cuda_graph else step.make


def _epoch(this: Session, make_step: MakeStep, epoch: int, progress: Progress) -> tuple[Record, Record]:
    start = perf_counter()
    meter = steps(this, make_step, epoch, progress)
    record = {"epoch": epoch + 1, "train_loss": meter.loss(), "train_accuracy": meter.accuracy()}
    trained = perf_counter()
    record |= _evaluate(this, epoch) | meter.means()
    record["lr"] = float(this.optimizer.param_groups[0]["lr"])
    record["weight_norm"] = float(get_total_norm(list(this.model.parameters())))
    timing = {
        "epoch": epoch + 1,
        "seconds": trained - start,
        "evaluation_seconds": perf_counter() - trained,
        "images_per_second": meter.samples() / (trained - start),
    }
    return record, timing


def steps(this: Session, make_step: MakeStep, epoch: int, progress: Progress) -> Meter:
    """Train for one epoch; nothing is read from the device until it ends."""
    torch.manual_seed(_layers_seed(this.run.training.seed, epoch))
    this.model.train()
    meter = Meter()
    for batch, samples in zip(this.training_batches(epoch), this.batch_sizes, strict=True):
        seen = make_step(this, batch, processes.weight(samples))
        meter.add_step(seen.observed)
        meter.add(seen.loss, seen.correct, len(batch[1]))
        if this.schedule is not None:
            this.schedule.step()
        progress.step(epoch, meter)
    processes.send_buffers(this.model)
    return meter


def _layers_seed(seed: int, epoch: int) -> int:
    """Seed the layers that draw, as dropout does: in every process for other samples."""
    own = f" {processes.rank()}" if processes.rank() else ""
    return stream_seed(f"layers{own}", seed, epoch)


def _evaluate(this: Session, epoch: int) -> Record:
    record = _named("test", _scores(this, this.test_batches(epoch)), this)
    if this.dataset.validation is not None:
        record |= _named("validation", _scores(this, this.validation_batches()), this)
    if this.run.training.eval_protocol == AUGMENTED_VALIDATION:
        augmented = _scores(this, this.test_batches(epoch, augmented=True))
        record |= {"test_loss_augmented": augmented.loss(), "test_accuracy_augmented": augmented.accuracy()}
    return record


def _named(part: str, scores: Scores, this: Session) -> Record:
    record = {f"{part}_loss": scores.loss(), f"{part}_accuracy": scores.accuracy()}
    return record | ({f"{part}_perplexity": scores.perplexity()} if this.objective.perplexity else {})


@torch.no_grad()
def _scores(this: Session, batches: Iterable[Batch]) -> Scores:
    this.model.eval()
    scores = Scores()
    for inputs, targets in batches:
        outputs = this.outputs(inputs)
        loss = this.loss(outputs, targets)
        scores.add(loss, this.objective.right_answers(outputs, targets), len(targets))
    return scores
