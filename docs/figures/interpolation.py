"""Draw ALI-G leaving its cap while a network interpolates, from the stored runs of `interpolation-cpu`.

`python docs/figures/interpolation.py [FILE.svg]`
"""

import sys
from pathlib import Path

import style
from matplotlib.figure import Figure

from polyak_lab.report import table
from polyak_lab.runs import stored

ROOT = Path(__file__).parents[2]
RUNS = ROOT / "results" / "2026-11-26-interpolation-cpu"
OUT = Path(__file__).with_suffix(".svg")
LINES = {
    "ALI-G, cap 0.1": ("blue", "-"),
    "ALI-G, cap 0.1, momentum 0.9, ball 100": ("green", "-"),
    "ALI-G, cap 0.1, momentum 0.9, ball 30": ("green", "--"),
    "ALI-G, cap 1, 80 epochs": ("purple", "-"),
    "ALI-G, cap 1, momentum 0.9, ball 30": ("purple", "--"),
    "SGD, lr 0.1, momentum 0.9, cosine": ("orange", "--"),
    "SGD, lr 1, momentum 0.9": ("orange", "-"),
}
PANELS = {  # key of the records: title, whether the axis is logarithmic, a factor
    "train_loss": ("training loss", True, 1),
    "step_size": ("step size γ at the end of the epoch", True, 1),
    "capped": ("capped steps, %", False, 100),
    "weight_norm": ("norm of the weights", False, 1),
}


def draw(theme: style.Theme) -> Figure:
    """Draw what the records of each epoch hold, a panel for each number."""
    figure = Figure(figsize=(9.0, 6.6), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True)
    runs = {group.row: group.runs[0] for group in table.groups(stored.find_runs([RUNS]))}
    for panel, (key, (title, logarithmic, factor)) in zip(axes.flat, PANELS.items(), strict=True):
        for row, (colour, line) in LINES.items():
            points = [(r["epoch"], factor * r[key]) for r in runs[row].records if r.get(key) is not None]
            panel.plot(*zip(*points, strict=True), line, color=getattr(theme, colour), linewidth=1.6, label=row)
        panel.set(title=title, yscale="log" if logarithmic else "linear")
        panel.grid(axis="y")
    for panel in axes[1]:
        panel.set_xlabel("epoch")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


if __name__ == "__main__":
    style.save(draw, Path(sys.argv[1]) if len(sys.argv) > 1 else OUT)
