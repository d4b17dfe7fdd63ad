"""Two rows compared: Welch's t-test, the paired test seed by seed, and what differs in the configurations."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from polyak_lab.config.strict import shown
from polyak_lab.console import cell, decimals, printable, say, say_lines, show, warn
from polyak_lab.errors import LabError
from polyak_lab.report import differences, table
from polyak_lab.report.statistics import deviation
from polyak_lab.report.table import Group, Score, paper_score
from polyak_lab.runs import stored

ASSUMPTIONS = """\
Assumptions of Welch's test: the runs are independent of each other, within a row and between the rows, and the scores
of each row are approximately normal; the variances may differ. Few runs cannot show whether that holds. Of the paired
test: the differences are approximately normal; the same seed gives both rows the same weights and batches if model and
data are the same, which makes the test sharper. Neither corrects for several comparisons."""
Seeds = tuple[int, int]


@dataclass(frozen=True)
class Result:
    """A t-test of the difference of two means, with its 95 % confidence interval."""

    name: str
    difference: float
    interval: tuple[float, float]
    statistic: float
    degrees: float
    p: float


def compare(first: Path, second: Path, metric: str | None, console: Console) -> None:
    """Print how the runs of two folders, of one row each, differ."""
    rows = [read_row(path) for path in (first, second)]
    if rows[0].runs[0].group == rows[1].runs[0].group:
        raise LabError(f"{first} and {second} hold runs of the same row, {shown(rows[0].row)}: name two rows.")
    if rows[0].row == rows[1].row:
        rows = [replace(row, row=f"{row.row} ({path})") for row, path in zip(rows, (first, second), strict=True)]
    score = choose_score(rows, metric)
    values = [score.by_seed(row) for row in rows]
    _check(rows, values, score)
    show(console, _table(rows, score))
    _print_tests(console, [printable(row.row) for row in rows], values, score)
    _print_configurations(console, rows)


def read_row(path: Path) -> Group:
    """Read the runs of a folder, which must be those of one row."""
    rows = table.groups(stored.find_runs([path], on_problem=warn))
    if len(rows) > 1:
        names = ", ".join(shown(row.row) for row in rows[:3]) + (", ..." if len(rows) > 3 else "")
        raise LabError(
            f"{path} holds {len(rows)} rows ({names}): name the folder of one, such as {rows[0].runs[0].path.parent}."
        )
    if not rows[0].finished:
        raise LabError(f"No run in {path} is finished: polyak compare reads the last epoch of finished runs.")
    return rows[0]


def choose_score(rows: Sequence[Group], metric: str | None) -> Score:
    """Choose the main score of the table, or a number of metrics.jsonl by its name."""
    known = [set(row.finished[0].records[-1]) - {"epoch"} for row in rows]
    if metric is None:
        return paper_score(rows)
    if not all(metric in names for names in known):
        both = ", ".join(sorted(known[0] & known[1]))
        raise LabError(f"--metric {metric} is not in metrics.jsonl of both rows: choose one of {both}.")
    return Score(metric, metric, 1.0, ".4g")


def tests(first: dict[Seeds, float], second: dict[Seeds, float]) -> list[Result]:
    """Return Welch's test where both have two values, and the paired one where two seeds are the same."""
    ours, theirs = [*first.values()], [*second.values()]
    paired = sorted(first.keys() & second.keys())
    found = []
    if min(len(ours), len(theirs)) > 1 and any(deviation(values) > 0 for values in (ours, theirs)):
        found.append(_test("Welch", ours, theirs))
    same = [first[seed] for seed in paired], [second[seed] for seed in paired]
    if len(paired) > 1 and deviation([one - other for one, other in zip(*_scaled(*same)[1], strict=True)]) > 0:
        found.append(_test(f"paired, {len(paired)} seeds", *same))
    return found


def _scaled(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, tuple[list[float], list[float]]]:
    """Divide by the largest value, since differences and squares of large numbers overflow."""
    scale = max(map(abs, (*ours, *theirs))) or 1.0
    return scale, ([value / scale for value in ours], [value / scale for value in theirs])


def _test(name: str, ours: Sequence[float], theirs: Sequence[float]) -> Result:
    from scipy import stats  # takes a second to import

    scale, scaled = _scaled(ours, theirs)
    with warnings.catch_warnings():  # SciPy warns of nearly equal values
        warnings.simplefilter("ignore")
        made: Any = stats.ttest_ind(*scaled, equal_var=False) if name == "Welch" else stats.ttest_rel(*scaled)
        low, high = map(float, made.confidence_interval(0.95))
    interval = scale * low, scale * high
    return Result(name, scale * ((low + high) / 2), interval, float(made.statistic), float(made.df), float(made.pvalue))


def _check(rows: Sequence[Group], values: Sequence[dict[Seeds, float]], score: Score) -> None:
    for row, found in zip(rows, values, strict=True):
        if not found:
            raise LabError(f"{shown(row.row)} has no {score.title}: choose another number with --metric.")
        if not all(map(math.isfinite, found.values())):
            raise LabError(
                f"The {score.title} of a run of {shown(row.row)} is not finite, so there is no mean to compare."
            )


def _table(rows: Sequence[Group], score: Score) -> Table:
    listed = Table("row", score.title, "n", header_style="bold")
    for row in rows:
        listed.add_row(cell(row.row), score.write(row), row.count)
    return listed


def _print_tests(console: Console, names: Sequence[str], values: Sequence[dict[Seeds, float]], score: Score) -> None:
    found = tests(*values)
    if not found:
        say(console, "There is no test: it needs two finished runs of each row, and scores that are not all the same.")
        return
    title = f"{score.title}: {names[0]} - {names[1]}"
    listed = Table("test", "difference [95 %]", "t", "degrees of freedom", "p", header_style="bold", title=cell(title))
    for result in found:
        middle, low, high = decimals(f"+{score.form}", result.difference, *result.interval)
        p = f"{result.p:.2g}" if result.p >= 1e-4 else "< 0.0001"
        listed.add_row(result.name, f"{middle} [{low}, {high}]", f"{result.statistic:.2f}", f"{result.degrees:.1f}", p)
    show(console, listed)
    say_lines(console, ASSUMPTIONS)


def _print_configurations(console: Console, rows: Sequence[Group]) -> None:
    found = differences.differing([row.runs[0].config for row in rows])
    listed = Table("option", header_style="bold")
    for row in rows:
        listed.add_column(cell(row.row))
    for key, both in found.items():
        listed.add_row(cell(key), *map(cell, both))
    if found:
        show(console, listed)
    else:
        say(console, "Their configurations differ in nothing but the seeds.")
    if any(key.startswith("data.") for key in found):
        comparable = differences.same_test_samples(*(row.runs[0].config for row in rows))
        ending = ", and tested on the same." if comparable else ": a difference of their scores says little."
        say(console, f"The rows were trained on different data{ending}")
