"""Draw the two rows of the note's Table 1 on CIFAR-10, epoch by epoch, from the stored runs of `note-table1`.

`python docs/figures/note_table1.py [FILE.svg]`
"""

import sys
from pathlib import Path

import style
from matplotlib.figure import Figure

from polyak_lab.report import table
from polyak_lab.runs import stored

ROOT = Path(__file__).parents[2]
RUNS = ROOT / "results" / "2026-11-27-note-table1-h100"
OUT = Path(__file__).with_suffix(".svg")
LINES = {
    "CIFAR-10, ALI-G, momentum 0.9, ball 100": ("green", "momentum 0.9, ball 100"),
    "CIFAR-10, ALI-G as in Loizou et al.": ("blue", "no momentum, no ball"),
}
ACCURACY = "test_accuracy_augmented"
PANELS = {  # key of the records: title, whether the axis is logarithmic, a factor
    ACCURACY: ("accuracy on augmented test images, %", False, 100),
    "train_loss": ("training loss", True, 1),
    "step_size": ("mean step size γ of the epoch", True, 1),
    "capped": ("capped steps, %", False, 100),
}


def draw(theme: style.Theme) -> Figure:
    """Draw a panel for each number; a dotted line is the accuracy that the note reports."""
    figure = Figure(figsize=(9.0, 6.2), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True)
    runs = {group.row: group.runs[0] for group in table.groups(stored.find_runs([RUNS]))}
    for panel, (key, (title, logarithmic, factor)) in zip(axes.flat, PANELS.items(), strict=True):
        for row, (colour, label) in LINES.items():
            points = [(record["epoch"], factor * record[key]) for record in runs[row].records]
            panel.plot(*zip(*points, strict=True), color=getattr(theme, colour), linewidth=1.4, label=label)
            if key == ACCURACY:
                panel.axhline(runs[row].label.paper, color=getattr(theme, colour), linewidth=1.0, linestyle=":")
        panel.set(title=title, yscale="log" if logarithmic else "linear")
        panel.grid(axis="y")
    axes[0, 0].set_ylim(75, 95)
    for panel in axes[1]:
        panel.set_xlabel("epoch")
    figure.legend(*axes[0, 1].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


if __name__ == "__main__":
    style.save(draw, Path(sys.argv[1]) if len(sys.argv) > 1 else OUT)
