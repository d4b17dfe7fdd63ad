"""The table of runs: mean ± standard deviation over the seeds, and the paper's number."""

import csv
import io
import math
import statistics
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from polyak_lab.console import capped_share, cell, printable
from polyak_lab.runs.stored import StoredRun

EMPTY = "–"
DIVERGED = "not finite"
CAPPED = "capped steps"


@dataclass(frozen=True)
class Group:
    """The runs of one row, which differ in nothing but their seeds."""

    row: str
    runs: tuple[StoredRun, ...]

    @property
    def finished(self) -> list[StoredRun]:
        """The runs that came to their end; only these are counted."""
        return [run for run in self.runs if run.finished and run.records]

    @property
    def paper(self) -> float | None:
        """The paper's number."""
        return self.runs[0].label.paper

    def final(self, key: str) -> list[float]:
        """Take a number of the last epoch from every finished run that has it."""
        values = [run.records[-1].get(key) for run in self.finished]
        return [value for value in values if value is not None]

    def capped(self) -> list[float]:
        """Return the fraction of capped steps, over all epochs, of every finished run."""
        fractions = [[record.get("capped") for record in run.records] for run in self.finished]
        epochs = [[value for value in run if value is not None] for run in fractions]
        return [mean(values) for values in epochs if values]

    @property
    def has_ball(self) -> bool:
        """Whether the weights were kept in an l2 ball."""
        return self.runs[0].config["optimizer"].get("l2_ball") is not None


@dataclass(frozen=True)
class Score:
    """A column of numbers: where it comes from, and how it is written."""

    title: str
    key: str
    factor: float
    form: str

    def values(self, group: Group) -> list[float]:
        """Take the score of every finished run."""
        return [self.factor * value for value in group.final(self.key)]

    def write(self, group: Group) -> str:
        """Write mean ± standard deviation."""
        values = self.values(group)
        if not values:
            return EMPTY
        if not all(map(math.isfinite, values)):
            return DIVERGED
        center = format(mean(values), self.form)
        if len(values) == 1:
            return center
        return f"{center} ± {format(deviation(values), self.form)}"


ACCURACY = Score("test accuracy, %", "test_accuracy", 100.0, ".2f")
AUGMENTED = Score("accuracy on augmented test images, %", "test_accuracy_augmented", 100.0, ".2f")
PERPLEXITY = Score("test perplexity", "test_perplexity", 1.0, ".2f")
CROSS_ENTROPY = Score("test loss, nats", "test_loss", 1.0, ".3f")
TEST_LOSS = Score("test loss", "test_loss", 1.0, ".2e")
WEIGHT_NORM = Score("weight norm", "weight_norm", 1.0, ".1f")
TRAIN_LOSS = Score("train loss", "train_loss", 1.0, ".1e")


def mean(values: Sequence[float]) -> float:
    """Average finite numbers; a sum of large ones does not overflow."""
    scale = max(map(abs, values)) or 1.0
    return scale * statistics.fmean([value / scale for value in values])


def deviation(values: Sequence[float]) -> float:
    """Return the standard deviation of two or more finite numbers, without overflow."""
    scale = max(map(abs, values)) or 1.0
    return scale * statistics.stdev([value / scale for value in values])


def groups(runs: Iterable[StoredRun]) -> list[Group]:
    """Put the runs of a row together, in the order of the recipe."""
    collected: dict[tuple[str, str], list[StoredRun]] = {}
    for run in sorted(runs, key=lambda run: (run.label.table or "", run.label.position, str(run.path))):
        collected.setdefault(run.group, []).append(run)
    rows = [row for row, _ in collected]
    return [
        Group(row if rows.count(row) == 1 else f"{row} [{key[:6]}]", tuple(members))
        for (row, key), members in collected.items()
    ]


def paper_score(rows: Sequence[Group]) -> Score:
    """Choose the score that is compared with the paper: the augmented one if there is one."""
    return next((score for score in (AUGMENTED, ACCURACY, PERPLEXITY) if _has(score, rows)), TEST_LOSS)


def cells(rows: Sequence[Group]) -> tuple[list[str], list[list[str]]]:
    """Write the table as text: its head and its lines, without the columns nobody fills."""
    scores = [score for score in (ACCURACY, AUGMENTED, PERPLEXITY) if _has(score, rows)] or [TEST_LOSS]
    if PERPLEXITY in scores:
        scores.append(CROSS_ENTROPY)
    columns: list[tuple[str, Callable[[Group], str]]] = [("row", lambda group: printable(group.row))]
    columns += [(score.title, score.write) for score in [*scores, TRAIN_LOSS]]
    if any(group.capped() for group in rows):
        columns.append((CAPPED, _capped))
    if any(group.has_ball for group in rows):
        columns.append((WEIGHT_NORM.title, WEIGHT_NORM.write))
    columns.append(("n", _count))
    if any(group.paper is not None for group in rows):
        score = paper_score(rows)
        columns.append(("paper", lambda group: EMPTY if group.paper is None else format(group.paper, "g")))
        columns.append(("difference", lambda group: _difference(group, score)))
    return [title for title, _ in columns], [[write(group) for _, write in columns] for group in rows]


def as_rich(rows: Sequence[Group], title: str | None = None) -> Table:
    """Lay the table out for a terminal."""
    head, lines = cells(rows)
    shown = None if title is None else cell(title)
    table = Table(title=shown, title_justify="left", title_style="bold", header_style="bold")
    for index, (name, *column) in enumerate(zip(head, *lines, strict=True)):
        if index == 0:
            table.add_column(cell(name), min_width=8, overflow="fold")
            continue
        widest = max((cell(text).cell_len for text in column), default=0)  # numbers stay whole
        # Headings are folded to their width.
        folded = textwrap.fill(name, max(widest, 8), break_long_words=False)
        whole = name != CAPPED
        widest = widest if whole else max(len(word) for text in column for word in text.split())
        table.add_column(Text(folded), justify="right", no_wrap=whole, min_width=widest)
    for line in lines:
        table.add_row(*map(cell, line))
    return table


def as_markdown(rows: Sequence[Group]) -> str:
    """Lay the table out for a document."""
    head, lines = cells(rows)
    rule = ["---", *["---:"] * (len(head) - 1)]
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in (head, rule, *lines)]
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def as_csv(rows: Sequence[Group]) -> str:
    """Lay the table out for a spreadsheet."""
    head, lines = cells(rows)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *lines])
    return text.getvalue().rstrip("\n")


def _has(score: Score, rows: Sequence[Group]) -> bool:
    return any(score.values(group) for group in rows)


def _capped(group: Group) -> str:
    values = group.capped()
    return capped_share(mean(values)) if values else EMPTY


def _count(group: Group) -> str:
    done, begun = len(group.finished), len(group.runs)
    return str(done) if done == begun else f"{done} of {begun}"


def _difference(group: Group, score: Score) -> str:
    values = score.values(group)
    if group.paper is None or not values:
        return EMPTY
    if not all(map(math.isfinite, values)):
        return DIVERGED
    return f"{mean(values) - group.paper:+.2f}"
