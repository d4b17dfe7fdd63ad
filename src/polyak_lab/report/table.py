"""The table of runs: mean ± standard deviation over the seeds, and the paper's number."""

import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from polyak_lab.config.run import BALLS
from polyak_lab.console import capped_share, cell, decimals, printable
from polyak_lab.recipes.recipe import slug
from polyak_lab.report.differences import same_test_samples
from polyak_lab.report.statistics import Difference, deviation, mean, paired_difference
from polyak_lab.runs.stored import StoredRun

EMPTY = "–"
DIVERGED = "not finite"
CAPPED = "capped steps"


def capped_of(run: StoredRun) -> float | None:
    """Return the fraction of capped steps of a run over all its epochs; None if its method has no cap."""
    shares = [share for record in run.records if (share := record.get("capped")) is not None]
    return mean(shares) if shares else None


@dataclass(frozen=True)
class Group:
    """The runs of one row, which differ in nothing but their seeds."""

    row: str
    runs: tuple[StoredRun, ...]

    @property
    def name(self) -> str:
        """The name of the row."""
        return self.row

    @property
    def slug(self) -> str:
        """The name as a folder."""
        return slug(self.row)

    family = name

    @property
    def finished(self) -> list[StoredRun]:
        """The runs that came to their end; only these are counted."""
        return [run for run in self.runs if run.finished and run.records]

    @property
    def count(self) -> str:
        """How many runs are finished, and of how many if that is not all."""
        done, begun = len(self.finished), len(self.runs)
        return str(done) if done == begun else f"{done} of {begun}"

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
        return [share for run in self.finished if (share := capped_of(run)) is not None]

    @property
    def has_ball(self) -> bool:
        """Whether the weights were kept in an l2 ball."""
        return any(self.runs[0].config["optimizer"].get(key) is not None for key in BALLS)


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

    def by_seed(self, group: Group) -> dict[tuple[int, int], float]:
        """Take the score of every finished run by its seeds."""
        values = {run.seeds: run.records[-1].get(self.key) for run in group.finished}
        return {seeds: self.factor * value for seeds, value in values.items() if value is not None}

    @property
    def column(self) -> str:
        """The name of the column in a CSV file."""
        return f"{self.key}_percent" if self.factor != 1.0 else self.key

    def write(self, group: Group) -> str:
        """Write mean ± standard deviation."""
        values = self.values(group)
        if not values:
            return EMPTY
        if not all(map(math.isfinite, values)):
            return DIVERGED
        return " ± ".join(decimals(self.form, mean(values), *([deviation(values)] if len(values) > 1 else [])))


ACCURACY = Score("test accuracy, %", "test_accuracy", 100.0, ".2f")
AUGMENTED = Score("accuracy on augmented test images, %", "test_accuracy_augmented", 100.0, ".2f")
PERPLEXITY = Score("test perplexity", "test_perplexity", 1.0, ".2f")
CROSS_ENTROPY = Score("test loss, nats", "test_loss", 1.0, ".3f")
VALIDATION = (
    Score("validation accuracy, %", "validation_accuracy", 100.0, ".2f"),
    Score("validation perplexity", "validation_perplexity", 1.0, ".2f"),
    Score("validation loss", "validation_loss", 1.0, ".2e"),
)
TEST_LOSS = Score("test loss", "test_loss", 1.0, ".2e")
WEIGHT_NORM = Score("weight norm", "weight_norm", 1.0, ".1f")
TRAIN_LOSS = Score("train loss", "train_loss", 1.0, ".1e")


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


def scores(rows: Sequence[Group]) -> list[Score]:
    """Choose the scores that a table shows: those of test samples, then those of held-out samples if there are any.

    Every row has one: of rows without accuracy and perplexity, beside others, the loss is shown.
    """
    found = _chosen((ACCURACY, AUGMENTED, PERPLEXITY), TEST_LOSS, rows) or [TEST_LOSS]
    if PERPLEXITY in found and TEST_LOSS not in found:
        found.append(CROSS_ENTROPY)
    return found + _chosen(VALIDATION[:-1], VALIDATION[-1], rows)


def _chosen(named: Sequence[Score], loss: Score, rows: Sequence[Group]) -> list[Score]:
    found = [score for score in named if _has(score, rows)]
    lacking = (group for group in rows if not any(score.values(group) for score in found))
    return [*found, loss] if any(loss.values(group) for group in lacking) else found


def compare(group: Group, against: Group, score: Score) -> Difference | None:
    """Compare a row with another, seed by seed; None if their test samples differ."""
    if not same_test_samples(group.runs[0].config, against.runs[0].config):
        return None
    return paired_difference(score.by_seed(group), score.by_seed(against))


def cells(rows: Sequence[Group], against: Group | None = None) -> tuple[list[str], list[list[str]]]:
    """Write the table as text: its head and its lines, without empty columns."""
    columns: list[tuple[str, Callable[[Group], str]]] = [("row", lambda group: printable(group.row))]
    columns += [(score.title, score.write) for score in [*scores(rows), TRAIN_LOSS]]
    if any(group.capped() for group in rows):
        columns.append((CAPPED, _capped))
    if any(group.has_ball for group in rows):
        columns.append((WEIGHT_NORM.title, WEIGHT_NORM.write))
    columns.append(("n", lambda group: group.count))
    if any(group.paper is not None for group in rows):
        columns.append(("paper", lambda group: EMPTY if group.paper is None else format(group.paper, "g")))
        columns.append(("difference", lambda group: _difference(group, _paper_score_of(group, rows))))
    if against is not None:
        score = paper_score([against])
        title = f"{score.title}: difference to {printable(against.row)} [95 %]"
        columns.append((title, lambda group: _comparison(group, against, score)))
    return [title for title, _ in columns], [[write(group) for _, write in columns] for group in rows]


def as_rich(rows: Sequence[Group], title: str | None = None, against: Group | None = None) -> Table:
    """Lay the table out for a terminal."""
    head, lines = cells(rows, against)
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


def _paper_score_of(group: Group, rows: Sequence[Group]) -> Score:
    """Choose the score of a row that is compared with the paper: that of all rows, unless its data has another one."""
    common = paper_score(rows)
    return common if common.values(group) or ACCURACY.values(group) else paper_score([group])


def _has(score: Score, rows: Sequence[Group]) -> bool:
    return any(score.values(group) for group in rows)


def _capped(group: Group) -> str:
    values = group.capped()
    return capped_share(mean(values)) if values else EMPTY


def _difference(group: Group, score: Score) -> str:
    values = score.values(group)
    if group.paper is None or not values:
        return EMPTY
    if not all(map(math.isfinite, values)):
        return DIVERGED
    return f"{mean(values) - group.paper:+.2f}"


def _comparison(group: Group, against: Group, score: Score) -> str:
    found = None if group is against else compare(group, against, score)
    if found is None:
        return EMPTY
    center, *ends = decimals(f"+{score.form}", found.mean, *(found.interval or ()))
    return f"{center} [{', '.join(ends)}]" if ends else center
