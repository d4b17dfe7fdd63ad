"""One trial of a sweep, and how a machine tries it. A machine that tries needs no study at hand."""

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
PATIENCE = 30.0  # seconds; a worker that is being killed holds its folder a little longer

Behind = Callable[[int, float], bool]
"""Asked after every epoch with its number and score: has this trial fallen behind the others?"""


@dataclass(frozen=True)
class Trial:
    """The values tried, as a run in a folder named by its content."""

    number: int
    name: str
    run: Run
    folder: Path
    table: str

    def at(self, folder: Path) -> RunFolder:
        """See a folder as the place of this trial's run."""
        return RunFolder(folder, self.run, Label(self.name, self.table))


@dataclass(frozen=True)
class Outcome:
    """The score of the last epoch, and whether the trial was stopped there."""

    score: float
    pruned: bool


class FellBehindError(Exception):
    """The study gives a trial up."""


class _Reporter(Progress):
    """Tell the study about every epoch, and stop a trial that falls behind the others."""

    def __init__(self, behind: Behind) -> None:
        super().__init__(Console(quiet=True), epochs=False)
        self.behind = behind

    def epoch_done(self, record: Numbers, timing: Numbers) -> None:
        if self.behind(record["epoch"], score(record)):
            raise FellBehindError


def score(record: Numbers) -> float:
    """Take what trials are compared by: validation accuracy, or minus the validation loss where there is none."""
    accuracy = record["validation_accuracy"]
    found = float(-record["validation_loss"] if accuracy is None else accuracy)
    return -math.inf if math.isnan(found) else found


def attempt(trial: Trial, behind: Behind, folder: Path | None = None) -> Outcome:
    """Train a trial to its end, or until it falls behind, in its own folder unless another is named."""
    place = trial.at(folder or trial.folder)
    pruned = False
    try:
        train(trial.run, place, _Reporter(behind))
    except FellBehindError:
        pruned = True
    return outcome(place, pruned)


def outcome(place: RunFolder, pruned: bool = False) -> Outcome:
    """Read what a trial came to."""
    return Outcome(score(stored.load_run(place.path).records[-1]), pruned)


def attempt_away(trial: Trial, behind: Behind) -> tuple[Outcome, dict[str, bytes]]:
    """Train a trial on a machine that may not see its folder; return the files that belong there."""
    with _place(trial) as folder:
        found = attempt(trial, behind, folder)
        files = {name: _content(folder / name) for name in FILES if name != CHECKPOINT}
    return found, {name: content for name, content in files.items() if content is not None}


def bring_home(trial: Trial, files: Mapping[str, bytes]) -> None:
    """Store what a trial sent; on a shared disk it is there already.

    A checkpoint that other lines were written beside belongs to an earlier attempt.
    """
    other = {name: content for name, content in files.items() if _content(trial.folder / name) != content}
    with explain_os_errors("write", trial.folder):
        if other:
            (trial.folder / CHECKPOINT).unlink(missing_ok=True)
    for name, content in other.items():
        write_atomic(trial.folder / name, content)


def _content(path: Path) -> bytes | None:
    with explain_os_errors("read", path):
        return path.read_bytes() if path.exists() else None


@contextmanager
def _place(trial: Trial) -> Iterator[Path]:
    """Choose the trial's own folder if this machine sees it and nobody works there, else one that goes away."""
    if trial.folder.is_dir() and _becomes_free(trial.folder):
        yield trial.folder
        return
    with tempfile.TemporaryDirectory(prefix="polyak-") as place:
        yield Path(place) / trial.folder.name


def _becomes_free(folder: Path) -> bool:
    until = time.monotonic() + PATIENCE
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
