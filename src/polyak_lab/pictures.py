"""Single pictures of run folders, as PNG or SVG files: accuracy against lr, and training loss over the epochs."""

import io
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from polyak_lab.curves import colour
from polyak_lab.errors import LabError
from polyak_lab.files import write_atomic
from polyak_lab.table import Group, paper_score

FORMATS = (".png", ".svg")
DASHED = ("sgd", "adam", "adamw")  # methods that do not read the loss

Points = dict[float, list[float]]


def write_sensitivity(path: Path, rows: Sequence[Group]) -> None:
    """Draw every method's score against lr; rows whose names differ in ', lr VALUE' alone are one method."""
    lines = methods(rows)
    if max((len(points) for _, points in lines.values()), default=0) < 2:
        raise LabError("--plot-lr needs runs of one method with two or more finite values of lr.")

    def draw(axes: Axes) -> None:
        for index, (name, (optimizer, points)) in enumerate(lines.items()):
            _line(axes, index, name, optimizer, points, marker="o")
        axes.set_xscale("log")
        axes.set_xlabel("lr: the learning rate; for ALI-G and SPS (solid lines) the cap on the step size")
        axes.set_ylabel(paper_score(rows).title)

    _save(path, draw)


def write_losses(path: Path, rows: Sequence[Group]) -> None:
    """Draw the training loss of every row over the epochs."""

    def draw(axes: Axes) -> None:
        for index, group in enumerate(rows):
            _line(axes, index, group.row, _method(group), _losses(group))
        axes.set_yscale("log")
        axes.set_xlabel("epoch")
        axes.set_ylabel("training loss, mean over the epoch")

    _save(path, draw)


def methods(rows: Sequence[Group]) -> dict[str, tuple[str, Points]]:
    """Collect the scores of each method by lr."""
    score = paper_score(rows)
    found: dict[str, tuple[str, Points]] = {}
    for group in rows:
        lr, values = float(group.runs[0].config["optimizer"]["options"]["lr"]), score.values(group)
        if values and math.isfinite(lr):
            name = group.row.partition(", lr ")[0]
            found.setdefault(name, (_method(group), {}))[1].setdefault(lr, []).extend(values)
    return found


def _method(group: Group) -> str:
    return str(group.runs[0].config["optimizer"]["name"])


def _losses(group: Group) -> Points:
    found: Points = {}
    for run in group.runs:
        for record in run.records:
            if 0 < record["train_loss"] < math.inf:
                found.setdefault(record["epoch"], []).append(record["train_loss"])
    return found


def _line(axes: Axes, index: int, name: str, optimizer: str, points: Points, marker: str | None = None) -> None:
    """Draw the mean over the seeds, and a band from the least to the greatest."""
    at = sorted(points)
    style = "--" if optimizer in DASHED else "-"
    axes.plot(at, [statistics.fmean(points[x]) for x in at], style, color=colour(index), marker=marker, label=name)
    low, high = [min(points[x]) for x in at], [max(points[x]) for x in at]
    axes.fill_between(at, low, high, color=colour(index), alpha=0.13, linewidth=0)


def _save(path: Path, draw: Callable[[Axes], None]) -> None:
    """Write a picture without date and version, so that the same runs give the same file."""
    if path.suffix not in FORMATS:
        raise LabError(f"The picture {path} must be a file that ends in {' or '.join(FORMATS)}.")
    with matplotlib.rc_context({"svg.hashsalt": "polyak", "font.size": 11}):
        figure = Figure(figsize=(9.6, 5.6), layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        axes.grid(axis="y", linewidth=0.5, alpha=0.5)
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside upper center", fontsize=10, frameon=False, ncols=4)
        content = io.BytesIO()
        undated = {"Date": None} if path.suffix == ".svg" else {"Software": None}
        figure.savefig(content, format=path.suffix[1:], dpi=150, metadata=undated)
    write_atomic(path, content.getvalue())
