"""Single pictures of run folders, as PNG or SVG files: accuracy against lr, and training loss over the epochs."""

import io
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from polyak_lab.console import printable
from polyak_lab.errors import LabError
from polyak_lab.files import write_atomic
from polyak_lab.report.curves import clipped, colour
from polyak_lab.report.table import Group, mean, paper_score

FORMATS = (".png", ".svg")
DASHED = ("sgd", "adam", "adamw")  # methods that do not read the loss

Points = dict[float, list[float]]


def write_sensitivity(path: Path, rows: Sequence[Group]) -> None:
    """Draw every method's score against lr; rows whose names differ in ', lr VALUE' alone are one method."""
    lines = methods(rows)
    if max((len(points) for _, points in lines.values()), default=0) < 2:
        raise LabError("--plot-lr needs runs of one method with two or more finite values of lr.")

    def draw(axes: Axes) -> None:
        axes.set_xscale("log")
        for index, (name, (optimizer, points)) in enumerate(lines.items()):
            _line(axes, index, name, optimizer, points, marker="o")
        axes.set_xlabel("lr: the learning rate; for ALI-G and SPS (solid lines) the cap on the step size")
        axes.set_ylabel(paper_score(rows).title)

    _save(path, draw)


def write_losses(path: Path, rows: Sequence[Group]) -> None:
    """Draw the training loss of every row over the epochs."""
    lines = {group.row: (_method(group), _losses(group)) for group in rows}
    if not any(points for _, points in lines.values()):
        raise LabError("--plot-loss needs an epoch whose training loss is positive and finite: no run has one yet.")

    def draw(axes: Axes) -> None:
        axes.set_yscale("log")
        for index, (name, (optimizer, points)) in enumerate(lines.items()):
            _line(axes, index, name, optimizer, points)
        axes.set_xlabel("epoch")
        axes.set_ylabel("training loss, mean over the epoch")

    _save(path, draw)


def methods(rows: Sequence[Group]) -> dict[str, tuple[str, Points]]:
    """Collect the scores of each method by lr."""
    score = paper_score(rows)
    found: dict[str, tuple[str, Points]] = {}
    for group in rows:
        lr = _lr(group)
        values = [clipped(value) for value in score.values(group) if math.isfinite(value)]
        if values and 0 < lr < math.inf:
            name = group.row.partition(", lr ")[0]
            found.setdefault(name, (_method(group), {}))[1].setdefault(clipped(lr), []).extend(values)
    return found


def _lr(group: Group) -> float:
    """Read lr, which JSON holds as 'inf' where there is no cap; NaN where the method has none."""
    lr = group.runs[0].config["optimizer"].get("options", {}).get("lr")
    try:
        return float(lr)
    except (TypeError, ValueError):
        return math.nan


def _method(group: Group) -> str:
    return str(group.runs[0].config["optimizer"]["name"])


def _losses(group: Group) -> Points:
    found: Points = {}
    for run in group.runs:
        for record in run.records:
            if 0 < record["train_loss"] < math.inf:
                found.setdefault(record["epoch"], []).append(clipped(record["train_loss"]))
    return found


def _line(axes: Axes, index: int, name: str, optimizer: str, points: Points, marker: str | None = None) -> None:
    """Draw the mean over the seeds, and a band from the least to the greatest."""
    at = sorted(points)
    style = "--" if optimizer in DASHED else "-"
    axes.plot(at, [mean(points[x]) for x in at], style, color=colour(index), marker=marker, gid=name)
    low, high = [min(points[x]) for x in at], [max(points[x]) for x in at]
    axes.fill_between(at, low, high, color=colour(index), alpha=0.13, linewidth=0)


def _name_lines(figure: Figure, axes: Axes) -> None:
    """Add a legend with the names as they are: matplotlib reads `$` as mathematics, and leaves out a leading `_`."""
    lines = [line for line in axes.lines if np.size(line.get_xdata()) > 0]
    stand_ins = [f"{number}" for number in range(len(lines))]
    legend = figure.legend(lines, stand_ins, loc="outside upper center", fontsize=10, frameon=False, ncols=4)
    for text, line in zip(legend.get_texts(), lines, strict=True):
        text.set_parse_math(False)
        text.set_text(printable(line.get_gid() or ""))


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
        _name_lines(figure, axes)
        content = io.BytesIO()
        undated = {"Date": None} if path.suffix == ".svg" else {"Software": None}
        with warnings.catch_warnings():  # a name in a script that the font does not have is drawn as boxes
            warnings.filterwarnings("ignore", message=r"(?s)Glyph .* missing from")
            figure.savefig(content, format=path.suffix[1:], dpi=150, metadata=undated)
    write_atomic(path, content.getvalue())
