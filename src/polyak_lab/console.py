"""Output to the terminal: literal text without control characters, in the stream's encoding."""

import codecs
import contextlib
import errno
import io
import os
import shutil
import sys
import threading
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from rich.console import Console, ConsoleOptions
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

from polyak_lab.errors import LabError

SPELLED = "polyak.spelled"
"""The name of the error handler that spells what a stream cannot encode."""

ASCII = {"±": "+/-", "•": "*", "–": "-", "—": "-", "…": "...", "×": "x", "→": "->", "‖": "||", "≤": "<=", "≥": ">="}
ASCII |= dict.fromkeys("╭╮╰╯┌┐└┘├┤┬┴┼┏┓┗┛┡┩╇┻┳╈", "+") | dict.fromkeys("─━╸╺", "-") | dict.fromkeys("│┃", "|")
WIDEST, NARROWEST = 10_000, 10  # columns
MOSTLY_CAPPED = 0.98
REORDERING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


class OutputLostError(LabError):
    """Standard output takes nothing more: the reader of a pipe is gone, or the disk is full."""

    def __init__(self, error: OSError) -> None:
        reason = error.strerror or error
        super().__init__(f"Cannot write to standard output: {reason}. Run the same command again to resume.")
        self.is_pipe = error.errno == errno.EPIPE


class _Stream:
    """Standard output or error; raises the first failed write once, in the main thread."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self.is_silent = False
        self.lost: OSError | None = None

    def write(self, text: str) -> int:
        """Write text."""
        self._attempt(lambda: self._file.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush."""
        self._attempt(self._file.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def _attempt(self, call: Callable[[], object]) -> None:
        if self.lost is None:
            try:
                call()
            except OSError as error:
                self.lost = error
        if self.lost is not None and not self.is_silent and threading.current_thread() is threading.main_thread():
            self.is_silent = True
            raise OutputLostError(self.lost)


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Wrap the standard streams, and raise an OutputLostError if output was lost."""
    before = sys.stdout, sys.stderr
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:  # where a process has no streams
        out, errors = (_Stream(_spelling(stream or nowhere)) for stream in before)
        errors.is_silent = True
        sys.stdout, sys.stderr = out, errors
        try:
            yield
            out.flush()
        finally:
            sys.stdout, sys.stderr = before
            for stream in (out, errors):
                if stream.lost is not None:
                    _discard(stream)


def mend_size() -> None:
    """Replace sizes that no terminal has: in 0 columns rich prints nothing, in fewer than 8 tyro's help never ends."""
    for name in ("COLUMNS", "LINES"):
        if not os.environ.get(name, "1").strip("0"):
            del os.environ[name]
    if shutil.get_terminal_size().columns < NARROWEST:
        os.environ["COLUMNS"] = str(NARROWEST)


def make_console(stderr: bool = False, quiet: bool = False) -> Console:
    """Make a console that prints what it is given: no markup, no emoji, no highlighting."""
    file = sys.stderr if stderr else sys.stdout
    terminal = False if quiet else None
    return Console(file=file, quiet=quiet, force_terminal=terminal, markup=False, emoji=False, highlight=False)


def say(console: Console, text: str) -> None:
    """Print a text in one line, whatever names it holds."""
    console.print(printable(text), markup=False, emoji=False, highlight=False, soft_wrap=True)


def say_lines(console: Console, text: str) -> None:
    """Print lines as they are."""
    for line in text.split("\n"):
        say(console, line)


def show(console: Console, table: Table) -> None:
    """Print a table whole: words are not cut, and in a terminal that is too narrow for them its lines run on."""
    options = console.options.update(max_width=WIDEST)
    table.width = Measurement.get(console, options, table).maximum
    if table.width > console.width:
        _narrow(table, console.width, [_measure(console, options, column) for column in table.columns])
    console.print(table, crop=False)


def _measure(console: Console, options: ConsoleOptions, column: Column) -> Measurement:
    """Return the width of a column's longest word, and of its longest line."""
    sizes = [Measurement.get(console, options, cell) for cell in (column.header, *column.cells)]
    longest = max(size.maximum for size in sizes)
    least = longest if column.no_wrap else max(size.minimum for size in sizes)
    return Measurement(max(least, column.min_width or 0), max(longest, column.min_width or 0))


def _narrow(table: Table, width: int, sizes: Sequence[Measurement]) -> None:
    """Narrow the widest columns as far as their words stay whole; rich would cut words of the widest."""
    widths = [size.maximum for size in sizes]
    borders = (table.width or 0) - sum(widths)
    while sum(widths) + borders > width and (able := [i for i, size in enumerate(sizes) if widths[i] > size.minimum]):
        widths[max(able, key=widths.__getitem__)] -= 1
    for column, fitting in zip(table.columns, widths, strict=True):
        column.width = fitting
    table.width = sum(widths) + borders


def warn(error: LabError) -> None:
    """Print on stderr what is wrong with one run of several."""
    say_error(make_console(stderr=True), f"polyak: {error}", error.details)


def say_error(console: Console, text: str, details: str = "") -> None:
    """Print an error in one line, and below it its details, such as the traceback of the user's own code."""
    say(console, text)
    if details:
        say_lines(console, details)


def printable(text: str) -> str:
    """Escape control characters, and characters that reorder others."""
    return text if text.isprintable() else "".join(map(_shown, text))


def is_encodable(text: str) -> bool:
    """Return whether a text can be stored; a file name can hold bytes that are not UTF-8."""
    return encodable(text) == text


def encodable(text: str) -> str:
    """Spell the bytes of a file name that are not UTF-8, so that it can be stored."""
    return text.encode("utf-8", "backslashreplace").decode()


def cell(text: str) -> Text:
    """Put text into a table as it is, in letters that standard output can encode."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return Text(printable(text).encode(encoding, SPELLED).decode(encoding))


def shortened(name: str, width: int) -> str:
    """Cut a name to a width; its start stays."""
    return name if len(name) <= width else f"{name[: max(width - 1, 1)]}…"


def decimals(form: str, *numbers: float) -> list[str]:
    """Write numbers in a format, or all as powers of ten if one is above a million, as a diverged run's perplexity."""
    huge = any(abs(number) >= 1e6 for number in numbers)
    return [format(number, f"{form.removesuffix(form.lstrip('+'))}.2e" if huge else form) for number in numbers]


def counted(number: int, noun: str) -> str:
    """Write how many there are: 1 run, 2 runs."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def capped_share(share: float) -> str:
    """Format the fraction of capped steps, with a note if the method is effectively SGD."""
    return f"{100 * share:.1f} %" + (" (effectively SGD)" if share > MOSTLY_CAPPED else "")


def _shown(letter: str) -> str:
    if unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") or letter in REORDERING:
        return letter.encode("unicode_escape").decode()
    return letter


def _spelled(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    spelled = (ASCII.get(letter) or letter.encode("ascii", "backslashreplace").decode() for letter in letters)
    return "".join(spelled), error.end


codecs.register_error(SPELLED, _spelled)


def _spelling(stream: IO[str]) -> IO[str]:
    """Let a stream spell what it cannot encode, unless the user chose another way."""
    if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape", "backslashreplace"):
        stream.reconfigure(errors=SPELLED)
    return stream


def _discard(stream: _Stream) -> None:
    """Discard buffered output, so that the interpreter does not write it again at exit."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
