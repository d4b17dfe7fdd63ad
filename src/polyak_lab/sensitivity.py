"""Accuracy against the learning rate: one line per method, from run folders that differ in `lr`."""

import io
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from polyak_lab.curves import PALETTE
from polyak_lab.errors import LabError
from polyak_lab.files import write_atomic
from polyak_lab.table import Group, paper_score

FORMATS = (".png", ".svg")
DASHED = ("sgd", "adam", "adamw")  # methods that do not read the loss

Points = dict[float, list[float]]


def write(path: Path, rows: Sequence[Group]) -> None:
    """Draw every method's score against lr into a PNG or SVG file."""
    if path.suffix not in FORMATS:
        raise LabError(f"--plot-lr {path}: write to a file that ends in {' or '.join(FORMATS)}.")
    lines = methods(rows)
    if max((len(points) for _, points in lines.values()), default=0) < 2:
        raise LabError("--plot-lr needs runs of one method with two or more finite values of lr.")
    with matplotlib.rc_context({"svg.hashsalt": "lr", "font.size": 11, "axes.unicode_minus": True}):
        figure = Figure(figsize=(9.6, 5.4), layout="constrained")
        _draw(figure.add_subplot(), lines, paper_score(rows).title)
        content = io.BytesIO()
        figure.savefig(content, format=path.suffix[1:], dpi=150, metadata=_undated(path.suffix))
    write_atomic(path, content.getvalue())


def methods(rows: Sequence[Group]) -> dict[str, tuple[str, Points]]:
    """Collect the scores of each method by lr: rows whose names differ in ', lr VALUE' alone are one method."""
    score = paper_score(rows)
    found: dict[str, tuple[str, Points]] = {}
    for group in rows:
        optimizer = group.runs[0].config["optimizer"]
        lr, values = float(optimizer["options"]["lr"]), score.values(group)
        if values and math.isfinite(lr):
            name = group.row.partition(", lr ")[0]
            found.setdefault(name, (optimizer["name"], {}))[1].setdefault(lr, []).extend(values)
    return found


def _draw(axes: Axes, lines: dict[str, tuple[str, Points]], title: str) -> None:
    for index, (name, (optimizer, points)) in enumerate(lines.items()):
        shade, style = PALETTE[index % len(PALETTE)], "--" if optimizer in DASHED else "-"
        rates = sorted(points)
        axes.plot(rates, [statistics.fmean(points[lr]) for lr in rates], style, color=shade, marker="o", label=name)
        low, high = [min(points[lr]) for lr in rates], [max(points[lr]) for lr in rates]
        axes.fill_between(rates, low, high, color=shade, alpha=0.13, linewidth=0)
    axes.set_xscale("log")
    axes.set_xlabel("lr: the learning rate; for ALI-G and SPS (solid lines) the cap on the step size")
    axes.set_ylabel(title)
    axes.grid(axis="y", linewidth=0.5, alpha=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower center", fontsize=9, frameon=False, ncols=2)


def _undated(suffix: str) -> dict[str, str | None]:
    """Leave the date and the program's version out, so that the same runs give the same file."""
    return {"Date": None} if suffix == ".svg" else {"Software": None}
