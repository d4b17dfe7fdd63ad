"""Draw the README's figure from the stored runs: `python docs/figures/accuracy_against_lr.py [FILE.png]`."""

import sys
from pathlib import Path

from matplotlib.figure import Figure

from polyak_lab.report import panels, table
from polyak_lab.runs import stored

ROOT = Path(__file__).parents[2]
RUNS = ROOT / "results" / "2026-11-26-mlp-lr-sensitivity-cpu"
OUT = Path(__file__).with_suffix(".png")
STYLES = {  # row: name in the figure, colour, line, and the height of the name at the right edge
    "ALI-G, momentum 0.9, ball 20": ("ALI-G, momentum 0.9", "#d55e00", "-", 98),
    "SPS, c 0.5": ("SPS", "#009e73", "-", 92),
    "ALI-G": ("ALI-G", "#0072b2", "-", 86),
    "AdamW": ("AdamW", "#8c6bb1", "--", 18),
    "SGD": ("SGD", "#e69f00", "--", 12),
    "SGD, momentum 0.9": ("SGD, momentum 0.9", "#7f7f7f", "--", 6),
}


def main(out: Path = OUT) -> None:
    """Draw test accuracy against lr: means, and a band from the lowest to the highest seed."""
    scores = panels.scores_by_lr(table.groups(stored.find_runs([RUNS])))
    figure = Figure(figsize=(8.4, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for row, (name, colour, line, height) in STYLES.items():
        points = scores[row][1]
        lrs = sorted(points)
        axes.plot(lrs, [sum(points[lr]) / len(points[lr]) for lr in lrs], line, color=colour, marker="o", markersize=4)
        low, high = [min(points[lr]) for lr in lrs], [max(points[lr]) for lr in lrs]
        axes.fill_between(lrs, low, high, color=colour, alpha=0.12, linewidth=0)
        axes.annotate(name, (1700, height), color=colour, va="center", annotation_clip=False)
    axes.set(xscale="log", ylim=(0, 101), xlabel="lr: the learning rate; for ALI-G and SPS the cap on the step size")
    axes.set_ylabel("test accuracy, %")
    axes.grid(axis="y", linewidth=0.5, alpha=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
