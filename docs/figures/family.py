"""Draw every method at its defaults and at ten times and a tenth of its lr, from the stored runs of `family`.

`python docs/figures/family.py [FILE.svg]`; with `--markdown` it prints the ranks as a table instead.
"""

import math
import sys
from itertools import product
from pathlib import Path
from typing import NamedTuple

import style
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from polyak_lab.report import table
from polyak_lab.runs import stored

ROOT = Path(__file__).parents[2]
RUNS = ROOT / "results" / "2026-11-27-family-cpu"
OUT = Path(__file__).with_suffix(".svg")
TASKS = ("digits", "fashion-mnist", "cifar10", "characters")
FACTORS = ("lr × 0.1", "", "lr × 10")
GUESSING = {"characters": math.log(103)}
"""The loss of a guess; the accuracy of one is 10 %, and 15 % counts as no better."""


class Cell(NamedTuple):
    """What a method reached on a task: the mean over its seeds, how many there were, and how good that is."""

    mean: float
    n: int
    merit: float
    """−∞ where the runs diverged."""


def cell_of(task: str, group: table.Group) -> Cell:
    """Return the accuracy in percent, or the test loss of characters; a run that diverged spoils its row."""
    text = task == "characters"
    values = group.final("test_loss") if text else [100 * value for value in group.final("test_accuracy")]
    losses = group.final("test_loss")
    failed = any(not value < GUESSING[task] for value in values) if text else any(value < 15 for value in values)
    mean = sum(values) / len(values)
    merit = -math.inf if failed or not all(map(math.isfinite, losses)) else -mean if text else mean
    return Cell(mean, len(values), merit)


def cells() -> dict[str, dict[tuple[str, str], Cell]]:
    """Return for each method what it reached on every task at every factor of its lr."""
    found: dict[str, dict[tuple[str, str], Cell]] = {}
    for group in table.groups(stored.find_runs([RUNS])):
        name, task = group.row.rsplit(", ", 1)
        method, factor = name.rsplit(", ", 1) if name.endswith(FACTORS[::2]) else (name, "")
        if group.finished:
            found.setdefault(method, {})[task, factor] = cell_of(task, group)
    return found


def ranked() -> list[tuple[str, float, dict[tuple[str, str], Cell]]]:
    """Return the methods by the mean of their ranks at their defaults, over the tasks that all were run on."""
    found = cells()
    tasks = [task for task in TASKS if all((task, "") in own for own in found.values())]
    ranks: dict[str, list[float]] = {method: [] for method in found}
    for task in tasks:
        merits = {method: own[task, ""].merit for method, own in found.items()}
        for method, merit in merits.items():
            better = sum(other > merit for other in merits.values())
            equal = sum(other == merit for other in merits.values())
            ranks[method].append(better + (equal + 1) / 2)
    order = sorted(found, key=lambda method: sum(ranks[method]))
    return [(method, sum(ranks[method]) / len(tasks), found[method]) for method in order]


def written(cell: Cell | None, task: str) -> str:
    """Write a cell: accuracy in percent, or the loss."""
    if cell is None:
        return "–"
    if not math.isfinite(cell.mean) or cell.mean > 1000:
        return "fails"
    return f"{cell.mean:.2f}" if task == "characters" else f"{cell.mean:.1f}"


def shown_tasks(rows: list[tuple[str, float, dict[tuple[str, str], Cell]]]) -> list[str]:
    """Return the tasks that any row has a number of."""
    return [task for task in TASKS if any((task, "") in own for _, _, own in rows)]


def draw(theme: style.Theme) -> Figure:
    """Draw a line of cells for every method, the best on top; each task has its own colours, the darker the better."""
    rows = ranked()
    columns = [at for at in product(TASKS, FACTORS) if any(at in own for _, _, own in rows)]
    figure, axes = style.one(1.0 + 0.72 * len(columns), 0.8 + 0.3 * len(rows))
    colours = LinearSegmentedColormap.from_list("merit", [theme.background, theme.blue])
    for x, (task, factor) in enumerate(columns):
        merits = [cell.merit for _, _, own in rows for (of, _), cell in own.items() if of == task]
        best = max(merits)
        worst = sorted(merit for merit in merits if math.isfinite(merit))[len(merits) // 5]
        for y, (_, _, own) in enumerate(rows):
            cell = own.get((task, factor))
            share = 0.0 if cell is None else min(max((cell.merit - worst) / (best - worst), 0.0), 1.0)
            axes.fill_between([x - 0.5, x + 0.5], y - 0.5, y + 0.5, color=colours(share), linewidth=0)
            ink = theme.background if share > 0.6 else theme.text
            axes.text(x, y, written(cell, task), ha="center", va="center", color=ink, fontsize=8)
        if factor == "":
            axes.text(x, -1.35, task, ha="center", va="center", fontsize=10)
        if columns[x - 1][0] != task:
            axes.axvline(x - 0.5, color=theme.text, linewidth=0.8, ymax=len(rows) / (len(rows) + 1))
    axes.set_xticks(range(len(columns)), [{"": "lr"}.get(factor, factor[3:]) for _, factor in columns], fontsize=8)
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(rows)), [f"{method}   {rank:.1f}" for method, rank, _ in rows], fontsize=9)
    axes.text(-0.7, -1.35, "method, mean rank", ha="right", va="center", fontsize=10)
    axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -2.0))
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return figure


def markdown() -> str:
    """Write the ranks and the scores at the defaults as a table."""
    rows = ranked()
    tasks = shown_tasks(rows)
    lines = [f"| method | mean rank | {' | '.join(tasks)} |", f"| --- | ---: |{' ---: |' * len(tasks)}"]
    for method, rank, own in rows:
        scores = " | ".join(written(own.get((task, "")), task) for task in tasks)
        lines.append(f"| {method} | {rank:.1f} | {scores} |")
    return "\n".join(lines)


if __name__ == "__main__":
    if "--markdown" in sys.argv:
        print(markdown())
    else:
        style.save(draw, Path(sys.argv[1]) if len(sys.argv) > 1 else OUT)
