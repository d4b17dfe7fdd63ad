"""Draw the test accuracy of every method at every lr, from the stored runs of `mlp-lr-sensitivity`.

`python docs/figures/all_methods.py [FILE.svg]`
"""

import sys
from pathlib import Path

import numpy as np
import style
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from polyak_lab.report import panels, table
from polyak_lab.runs import stored

ROOT = Path(__file__).parents[2]
RUNS = ROOT / "results" / "2026-11-26-mlp-lr-sensitivity-cpu"
OUT = Path(__file__).with_suffix(".svg")
LEGIBLE = 70  # above it the cells are dark enough for text in the colour of the page


def means() -> dict[str, dict[float, float]]:
    """Return the mean accuracy of every method by its lr, in the order of the recipe."""
    scores = panels.scores_by_lr(table.groups(stored.find_runs([RUNS])))
    return {row: {lr: float(np.mean(by_lr[lr])) for lr in sorted(by_lr)} for row, (_, by_lr) in scores.items()}


def draw(theme: style.Theme) -> Figure:
    """Draw a line of cells for every method, the darker the better."""
    found = means()
    lrs, values = [*next(iter(found.values()))], np.array([[*points.values()] for points in found.values()])
    figure, axes = style.one(8.0, 9.0)
    colours = LinearSegmentedColormap.from_list("accuracy", [theme.background, theme.blue])
    axes.imshow(values, cmap=colours, vmin=0, vmax=100, aspect="auto")
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            colour = theme.background if value > LEGIBLE else theme.text
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=9)
    axes.set_xticks(range(len(lrs)), [f"{lr:g}" for lr in lrs])
    axes.set_yticks(range(len(found)), [*found])
    axes.set_xlabel("lr: the cap on the step size\n(ScheduleFree+, SGD, Adam, AdamW: a factor)")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_title("test accuracy, % (digits, n = 3)", fontsize=11)
    return figure


if __name__ == "__main__":
    style.save(draw, Path(sys.argv[1]) if len(sys.argv) > 1 else OUT)
