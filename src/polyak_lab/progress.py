"""The progress of a run: a live bar on a terminal, plain lines elsewhere."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from time import monotonic
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Column
from rich.text import Text

from polyak_lab.console import capped_share, decimals, printable, say

TAKEN = 68  # columns of the live line that are not the name of the run
NARROW = 7  # the same where the percentage is all that there is room for
SAY_EVERY = 60.0  # seconds between the lines of a long run without a terminal
READ_EVERY = 0.25  # seconds; reading a number synchronises with a GPU

Numbers = Mapping[str, Any]


class Readable(Protocol):
    """Provides loss, accuracy and step size of the last step."""

    def latest(self) -> tuple[float, float | None, float]:
        """Read the three from the device."""
        ...


class Progress:
    """Plain: a line per epoch or per run, and one a minute in between."""

    def __init__(self, console: Console, epochs: bool) -> None:
        self.console = console
        self.each_epoch = epochs
        self.name = ""
        self.total = 0
        self.steps = 1
        self.position = (0, 0)  # the epoch, and its steps so far
        self.said_at = monotonic()

    def run_named(self, name: str) -> None:
        """Set the name of the next run."""
        self.name = name

    def run_started(self, epochs: int, steps: int, done: int) -> None:
        """Set the length of the run, and the number of epochs done before."""
        self.total, self.steps, self.position = epochs, steps, (0, 0)
        if done:
            self.say(f"{self.name}: resuming after epoch {done} of {epochs}")

    def step(self, epoch: int, meter: Readable, count: int = 1) -> None:
        """Count steps, and print a line a minute in an epoch that takes longer."""
        so_far = self.position[1] if self.position[0] == epoch else 0
        self.position = epoch, so_far + count
        if self._is_silent_for_long():
            place = f"{self._prefix()}epoch {epoch + 1}/{self.total}, step {so_far + count} of {self.steps}"
            self.say(f"{place}: {numbers(*meter.latest())}")

    def epoch_done(self, record: Numbers, timing: Numbers) -> None:
        """Print a line per epoch if requested, else one a minute."""
        if self.each_epoch or self._is_silent_for_long():
            speed = f"{timing['images_per_second']:,.0f} samples/s"
            epoch = f"{self._prefix()}epoch {record['epoch']}/{self.total}"
            self.say(f"{epoch}: {sentence(record)}, {speed}")

    def _prefix(self) -> str:
        return "" if self.each_epoch else f"{self.name}: "

    def _is_silent_for_long(self) -> bool:
        return monotonic() - self.said_at >= SAY_EVERY

    def run_finished(self, record: Numbers, seconds: float) -> None:
        """Print a line per run, unless every epoch has a line."""
        if not self.each_epoch:
            self.say(f"{self.name}: {sentence(record)}, {seconds:.1f} s")

    def run_failed(self) -> None:
        """Record that the run failed."""

    def say(self, line: str) -> None:
        """Print a line."""
        self.said_at = monotonic()
        say(self.console, line)


class LiveProgress(Progress):
    """Live: a bar that reads the last step a few times a second."""

    def __init__(self, console: Console, epochs: bool, bars: RichProgress) -> None:
        super().__init__(console, epochs)
        self.bars = bars
        self.task = bars.add_task("", numbers="", visible=False)
        self.read_at = 0.0

    def run_started(self, epochs: int, steps: int, done: int) -> None:
        """Show the bar, at the epoch the run starts from."""
        super().run_started(epochs, steps, done)
        width = self.console.width
        name = Text(printable(self.name))
        # Letters may be wide, so that columns are counted.
        name.truncate(max(12, width - (TAKEN if width >= TAKEN else NARROW)), overflow="ellipsis")
        self.bars.reset(self.task, description=name.plain, numbers="", visible=True, total=epochs * steps)
        self.bars.update(self.task, completed=done * steps)

    def step(self, epoch: int, meter: Readable, count: int = 1) -> None:
        """Advance the bar, and update its numbers a few times a second."""
        self.bars.advance(self.task, count)
        if (now := monotonic()) - self.read_at < READ_EVERY:
            return
        self.read_at = now
        self.bars.update(self.task, numbers=numbers(*meter.latest()))

    def run_finished(self, record: Numbers, seconds: float) -> None:
        """Leave a line above the bar."""
        self.bars.update(self.task, visible=False)
        super().run_finished(record, seconds)

    def _is_silent_for_long(self) -> bool:
        return False  # the bar moves

    def run_failed(self) -> None:
        """Remove the bar."""
        self.bars.update(self.task, visible=False)


@contextmanager
def showing(console: Console, epochs: bool) -> Iterator[Progress]:
    """Show progress in the way that fits the console; `epochs` asks for a line per epoch."""
    with showing_several(console, epochs) as make_progress:
        yield make_progress()


@contextmanager
def showing_several(console: Console, epochs: bool) -> Iterator[Callable[[], Progress]]:
    """Yield a function that makes the progress of one run; each run has its own bar."""
    if not console.is_terminal:
        yield lambda: Progress(console, epochs)
        return
    columns: list[ProgressColumn] = [_text("{task.description}"), _text("{task.percentage:3.0f} %")]
    if console.width >= TAKEN:
        columns.insert(1, BarColumn(bar_width=10))
        columns += [_text("{task.fields[numbers]}"), TimeRemainingColumn(compact=True)]
    with RichProgress(*columns, console=console, transient=True, refresh_per_second=4) as bars:
        yield lambda: LiveProgress(console, epochs, bars)


def _text(content: str) -> TextColumn:
    return TextColumn(content, markup=False, table_column=Column(no_wrap=True))


@contextmanager
def downloading(console: Console, name: str) -> Iterator[Callable[[int, int | None], None]]:
    """Show how much of a file has come; nothing when there is no terminal."""
    columns = (_text("{task.description}"), BarColumn(bar_width=24), DownloadColumn(), TimeRemainingColumn())
    with RichProgress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task(name, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def numbers(loss: float, accuracy: float | None, step_size: float) -> str:
    """Put the three numbers of a step side by side."""
    right = "" if accuracy is None else f"  accuracy {100 * accuracy:.0f} %"
    return f"loss {loss:.0e}{right}  step size {step_size:.0e}"


def sentence(record: Numbers) -> str:
    """Describe the metrics of an epoch."""
    parts = [f"train loss {float(record['train_loss']):.2e}"]
    if record["test_accuracy"] is None:
        parts.append(f"test loss {float(record['test_loss']):.2e}")
    else:
        parts.append(f"test accuracy {100 * record['test_accuracy']:.2f} %")
    if record.get("test_perplexity") is not None:
        parts.append(f"perplexity {decimals('.2f', float(record['test_perplexity']))[0]}")
    if record.get("test_accuracy_augmented") is not None:
        parts.append(f"on augmented images {100 * record['test_accuracy_augmented']:.2f} %")
    parts.append(f"step size {float(record['step_size']):.2e}")
    if record.get("capped") is not None:
        parts.append(f"capped {capped_share(float(record['capped']))}")
    return ", ".join(parts)
