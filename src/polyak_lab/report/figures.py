"""Figures of runs as PNG or SVG files."""

import io
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from polyak_lab.console import printable, shortened
from polyak_lab.errors import LabError
from polyak_lab.files import write_atomic
from polyak_lab.report.curves import Points, clipped, colour
from polyak_lab.report.panels import Lines, by_data, losses, scores_by_lr
from polyak_lab.report.statistics import mean
from polyak_lab.report.table import Group, paper_score

WIDE = 20.0  # the ratio of two perplexities, or losses, from which on their axis is logarithmic
LEGEND_WIDTH = 120  # characters side by side
DASHED = ("sgd", "adam", "adamw")  # methods that do not read the loss


def write_sensitivity(path: Path, rows: Sequence[Group]) -> None:
    """Draw scores against lr, a panel per data set; rows whose names differ only in ', lr VALUE' are one method."""
    panels = {panel.title: panel for panel in by_data(rows)}
    lines = {title: scores_by_lr(panel.rows, panel.hidden) for title, panel in panels.items()}
    if max((len(points) for panel in lines.values() for _, points in panel.values()), default=0) < 2:
        raise LabError("--plot-lr needs runs of one method with two or more finite values of lr.")

    def draw(axes: Axes, name: str) -> None:
        axes.set_xscale("log")
        score = paper_score(panels[name].rows)
        axes.set_ylabel(score.title)
        axes.set_yscale("log" if score.factor == 1.0 and _spread(lines[name]) > WIDE else "linear")

    label = "lr: the learning rate; for methods that read the loss (solid lines) the cap on the step size"
    _save(path, lines, draw, label, marker="o")


def write_losses(path: Path, rows: Sequence[Group]) -> None:
    """Draw the training loss of every row over the epochs, a panel per data set."""
    lines = {panel.title: losses(panel.rows, panel.hidden) for panel in by_data(rows)}
    if not any(points for panel in lines.values() for _, points in panel.values()):
        raise LabError("--plot-loss needs an epoch whose training loss is positive and finite: no run has one yet.")

    def draw(axes: Axes, name: str) -> None:
        axes.set_yscale("log")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylabel("training loss, mean over the epoch")

    _save(path, lines, draw, "epoch")


def _spread(lines: Lines) -> float:
    """Return the ratio of the largest to the smallest value; 1 if one is not positive."""
    values = [value for _, points in lines.values() for at_x in points.values() for value in at_x]
    return max(values) / min(values) if min(values, default=0.0) > 0 else 1.0


def _draw_line(axes: Axes, index: int, points: Points, alpha: float = 0.16, **style: Any) -> None:
    """Draw the mean over the seeds, and a band from the smallest to the largest value."""
    xs = sorted(points)
    if not xs:
        return
    axes.plot(xs, [mean(points[x]) for x in xs], color=colour(index), **style)
    low, high = [min(points[x]) for x in xs], [max(points[x]) for x in xs]
    axes.fill_between(xs, low, high, color=colour(index), alpha=alpha, linewidth=0)


def _save(
    path: Path,
    panels: Mapping[str, Lines],
    draw: Callable[[Axes, str], None],
    label: str,
    marker: str | None = None,
) -> None:
    """Write a figure without date and version, so that the same runs give the same file."""
    panels = {title: lines for title, lines in panels.items() if any(points for _, points in lines.values())}
    colours = {name: index for index, name in enumerate(dict.fromkeys(n for lines in panels.values() for n in lines))}
    with matplotlib.rc_context({"svg.hashsalt": "polyak", "font.size": 11}), warnings.catch_warnings():
        # A glyph that the font does not have is drawn as a box.
        warnings.filterwarnings("ignore", message=r"(?s)Glyph .* missing from")
        figure, all_axes = _subplots(len(panels))
        for axes, (title, lines) in zip(all_axes, panels.items(), strict=True):
            draw(axes, title)
            axes.set_title(printable(title) if len(panels) > 1 else "", parse_math=False)
            axes.grid(axis="y", linewidth=0.5, alpha=0.5)
            axes.spines[["top", "right"]].set_visible(False)
            for name, (method, points) in lines.items():
                style = "--" if method in DASHED else "-"
                shown = {clipped(x): [*map(clipped, values)] for x, values in points.items()}
                _draw_line(axes, colours[name], shown, alpha=0.13, linestyle=style, marker=marker, gid=name)
        figure.supxlabel(label, fontsize="medium")
        _add_legend(figure, {line.get_gid() or "": line for axes in all_axes for line in axes.lines})
        write_atomic(path, _rendered(figure, path.suffix.lower()))


def _subplots(count: int) -> tuple[Figure, list[Axes]]:
    """Make a figure with a panel for each data set, at most three side by side."""
    columns = min(count, 3)
    lines = math.ceil(count / columns)
    size = (9.6, 5.6) if count == 1 else (4.8 * columns, 3.9 * lines + 0.8)
    figure = Figure(figsize=size, layout="constrained")
    return figure, [figure.add_subplot(lines, columns, place + 1) for place in range(count)]


def _add_legend(figure: Figure, lines: Mapping[str, Line2D]) -> None:
    """Add a legend with literal names; matplotlib interprets `$` and omits a leading `_`."""
    names = [*map(printable, lines)]
    columns = LEGEND_WIDTH // (max(map(len, names), default=0) + 8)
    options: dict[str, Any] = {"loc": "outside upper center", "fontsize": 10, "frameon": False}
    placeholders = [f"{number}" for number in range(len(names))]
    legend = figure.legend([*lines.values()], placeholders, ncols=min(4, max(1, columns)), **options)
    for text in legend.get_texts():
        text.set_parse_math(False)
    width = max(map(len, names), default=0)
    while True:  # letters differ in width, so only the drawn legend tells whether it fits
        for text, name in zip(legend.get_texts(), names, strict=True):
            text.set_text(shortened(name, width))
        figure.draw_without_rendering()
        excess = legend.get_window_extent().width / figure.bbox.width
        if excess <= 1 or width <= 1:
            return
        width = min(width - 1, int(width / excess))


def _rendered(figure: Figure, suffix: str) -> bytes:
    content = io.BytesIO()
    undated = {"Date": None} if suffix == ".svg" else {"Software": None}
    figure.savefig(content, format=suffix[1:], dpi=150, metadata=undated)
    return content.getvalue()
