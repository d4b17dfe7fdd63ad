"""The style of all figures, and how they are saved: one file for light pages and one for dark ones."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure


class Theme(NamedTuple):
    """The colours of a figure; lines keep their order in both themes."""

    background: str
    text: str
    faint: str
    blue: str
    orange: str
    green: str
    purple: str


LIGHT = Theme("#ffffff", "#222222", "#c4c4c4", "#0072b2", "#c24e00", "#00795a", "#7b52a8")
DARK = Theme("#131416", "#dcdcdc", "#4a4d52", "#56b4e9", "#f5934d", "#2fc79a", "#b79be0")


def save(draw: Callable[[Theme], Figure], out: Path) -> None:
    """Draw a figure in both themes, into FILE.svg and FILE-dark.svg; equal content gives equal bytes."""
    for theme, path in ((LIGHT, out), (DARK, out.with_stem(f"{out.stem}-dark"))):
        with mpl.rc_context(settings(theme)):
            draw(theme).savefig(path, metadata={"Date": None, "Creator": None})


def settings(theme: Theme) -> dict[str, object]:
    """Return matplotlib's settings for a theme."""
    text = ("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor", "legend.labelcolor")
    return {
        **dict.fromkeys(text, theme.text),
        "figure.facecolor": theme.background,
        "axes.facecolor": theme.background,
        "savefig.facecolor": theme.background,
        "grid.color": theme.faint,
        "grid.linewidth": 0.6,
        "font.size": 11,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
        "svg.hashsalt": "polyak",
    }


def one(width: float = 7.0, height: float = 3.6) -> tuple[Figure, Axes]:
    """Return a figure with one pair of axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()
