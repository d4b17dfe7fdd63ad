"""One trial of a sweep, and how to run it, without the study, on any machine."""

import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from polyak_lab.config.run import Run
from polyak_lab.errors import LabError
from polyak_lab.files import explain_os_errors, write_atomic
from polyak_lab.progress import Numbers, Progress
from polyak_lab.runs import stored
from polyak_lab.runs.folder import FILES, RunFolder
from polyak_lab.runs.lock import locked
from polyak_lab.runs.stored import Label
from polyak_lab.training.loop import train

CHECKPOINT = "checkpoint.pt"
# Seconds; a worker that is being killed keeps the lock of its folder a little longer.
LOCK_TIMEOUT = 30.0

ShouldPrune = Callable[[int, float], bool]
"""Called after every epoch with its number and score; returns whether to prune the trial."""


@dataclass(frozen=True)
class Trial:
    """The values of a trial, as a run in a folder named by its hash."""

    number: int
    name: str
    run: Run
    folder: Path
    table: str

    def run_folder(self, folder: Path | None = None) -> RunFolder:
        """Return the run folder of this trial, in its own folder unless another is given."""
        return RunFolder(folder or self.folder, self.run, Label(self.name, self.table))


@dataclass(frozen=True)
class Outcome:
    """The score of the last epoch, and whether the trial was pruned there."""

    score: float
    pruned: bool


class TrialPrunedError(Exception):
    """The study prunes a trial."""


class _Reporter(Progress):
    """Report every epoch to the study, and stop the trial if the study prunes it."""

    def __init__(self, should_prune: ShouldPrune) -> None:
        super().__init__(Console(quiet=True), epochs=False)
        self.should_prune = should_prune

    def epoch_done(self, record: Numbers, timing: Numbers) -> None:
        if self.should_prune(record["epoch"], score(record)):
            raise TrialPrunedError


def score(record: Numbers) -> float:
    """Return the score of a trial: validation accuracy, or else minus the validation loss."""
    if "validation_loss" not in record:
        raise LabError(
            "The data has no held-out samples to compare trials on: set data.holdout, or return a third part."
        )
    accuracy = record["validation_accuracy"]
    value = float(-record["validation_loss"] if accuracy is None else accuracy)
    return -math.inf if math.isnan(value) else value


def run_trial(trial: Trial, should_prune: ShouldPrune, folder: Path | None = None) -> Outcome:
    """Train a trial until it ends or is pruned, in its own folder unless another is given."""
    run_folder = trial.run_folder(folder)
    pruned = False
    try:
        train(trial.run, run_folder, _Reporter(should_prune))
    except TrialPrunedError:
        pruned = True
    return read_outcome(run_folder, pruned)


def read_outcome(folder: RunFolder, pruned: bool = False) -> Outcome:
    """Read the outcome of a trial from its run folder."""
    return Outcome(score(stored.load_run(folder.path).records[-1]), pruned)


def run_remotely(trial: Trial, should_prune: ShouldPrune) -> tuple[Outcome, dict[str, bytes]]:
    """Train a trial on a node without access to its folder; return the files to store there."""
    with _working_folder(trial) as folder:
        outcome = run_trial(trial, should_prune, folder)
        files = {name: _read_if_exists(folder / name) for name in FILES if name != CHECKPOINT}
    return outcome, {name: content for name, content in files.items() if content is not None}


def copy_results_back(trial: Trial, files: Mapping[str, bytes]) -> None:
    """Store the files that a node returned; on a shared disk they exist already.

    If they differ, the checkpoint in the folder belongs to an earlier attempt and is deleted.
    """
    other = {name: content for name, content in files.items() if _read_if_exists(trial.folder / name) != content}
    with explain_os_errors("write", trial.folder):
        if other:
            (trial.folder / CHECKPOINT).unlink(missing_ok=True)
    for name, content in other.items():
        write_atomic(trial.folder / name, content)


def _read_if_exists(path: Path) -> bytes | None:
    with explain_os_errors("read", path):
        return path.read_bytes() if path.exists() else None


@contextmanager
def _working_folder(trial: Trial) -> Iterator[Path]:
    """Yield the trial's folder if it is accessible and not in use, else a temporary one."""
    if trial.folder.is_dir() and _wait_until_free(trial.folder):
        yield trial.folder
        return
    with tempfile.TemporaryDirectory(prefix="polyak-") as temporary:
        yield Path(temporary) / trial.folder.name


def _wait_until_free(folder: Path) -> bool:
    until = time.monotonic() + LOCK_TIMEOUT
    while not _is_free(folder):
        if time.monotonic() > until:
            return False
        time.sleep(0.5)
    return True


def _is_free(folder: Path) -> bool:
    try:
        with locked(folder):
            return True
    except LabError:
        return False
