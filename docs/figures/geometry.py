"""Draw a loss, its tangent line, the Polyak step and the capped step: `python docs/figures/geometry.py [FILE.svg]`."""

import sys
from pathlib import Path

import numpy as np
import style
from matplotlib.figure import Figure

OUT = Path(__file__).with_suffix(".svg")
START, CAP = 2.5, 0.22


def loss(x: np.ndarray | float) -> np.ndarray | float:
    """Return a convex loss whose minimum is 0."""
    return 0.5 * np.square(x)


def draw(theme: style.Theme) -> Figure:
    """Draw the figure."""
    figure, axes = style.one(7.2, 3.8)
    value, slope = loss(START), START
    gamma = value / slope**2
    x = np.linspace(-1.6, 3.0, 200)
    line = np.linspace(START - gamma * slope - 0.35, 3.0, 2)
    axes.plot(x, loss(x), color=theme.blue, linewidth=2.2)
    axes.plot(line, value + slope * (line - START), "--", color=theme.orange, linewidth=1.6)
    axes.axhline(0, color=theme.text, linewidth=0.8)
    ends = {
        "capped step: γ = lr": (START - CAP * slope, -0.85),
        "Polyak step: γ = f / ‖g‖²": (START - gamma * slope, -1.55),
    }
    for name, (end, height) in ends.items():
        colour = theme.green if "capped" in name else theme.orange
        axes.plot([end, end], [0, loss(end)], ":", color=colour, linewidth=1.2)
        axes.annotate("", (end, height), (START, height), arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 1.8})
        axes.text(START + 0.08, height, name, color=colour, va="center")
        axes.plot(end, loss(end), "o", color=colour, markersize=6, zorder=3)
    axes.plot([START, START], [-1.75, value], ":", color=theme.text, linewidth=1)
    axes.plot(START, value, "o", color=theme.text, markersize=7, zorder=3)
    axes.annotate("the loss f(x) now", (START, value), (-9, 4), textcoords="offset points", ha="right")
    axes.text(-1.52, loss(-1.6) + 0.12, "loss", color=theme.blue)
    axes.text(line[0] - 0.1, -0.5, "the line f(x) − γ‖g‖²", color=theme.orange, ha="right", va="center", fontsize=10)
    axes.text(-1.55, 0.08, "lower bound 0", fontsize=9.5)
    axes.set(xlim=(-1.6, 4.5), ylim=(-1.9, 4.3), xticks=[], yticks=[])
    axes.spines[["left", "bottom"]].set_visible(False)
    return figure


if __name__ == "__main__":
    style.save(draw, Path(sys.argv[1]) if len(sys.argv) > 1 else OUT)
