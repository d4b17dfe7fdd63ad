"""Draw test accuracy and the fraction of capped steps against lr from the stored runs of `tuning-lr`.

`python docs/figures/lr_sensitivity.py [FILE.svg]`
"""

import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import style
from matplotlib.figure import Figure

from polyak_lab.report import table
from polyak_lab.runs import stored

ROOT = Path(__file__).parents[2]
RUNS = ROOT / "results" / "2026-11-26-tuning-lr-cpu"
OUT = Path(__file__).with_suffix(".svg")
DATA = {"digits": "digits", "fashion-mnist": "Fashion-MNIST"}
ROWS = {"ALI-G": ("blue", "-"), "ALI-G, momentum 0.9": ("orange", "-"), "SGD": ("purple", "--")}

Points = dict[float, list[dict[str, float]]]


def points() -> dict[tuple[str, str], Points]:
    """Return the last record of every run by its data set, its method and its lr."""
    found: dict[tuple[str, str], Points] = defaultdict(lambda: defaultdict(list))
    for group in table.groups(stored.find_runs([RUNS])):
        for run in group.runs:
            optimizer = run.config["optimizer"]
            options = optimizer["options"]
            method = (
                "SGD" if optimizer["name"] == "sgd" else "ALI-G, momentum 0.9" if options.get("momentum") else "ALI-G"
            )
            found[run.config["data"]["name"], method][options["lr"]].append(run.records[-1])
    return found


def draw(theme: style.Theme) -> Figure:
    """Draw both data sets: accuracy above, capped steps below."""
    figure = Figure(figsize=(8.4, 4.6), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True, sharey="row", height_ratios=(2, 1))
    for (data, method), by_lr in points().items():
        column, (colour, line) = [*DATA].index(data), ROWS[method]
        lrs = sorted(by_lr)
        scores = [[100 * record["test_accuracy"] for record in by_lr[lr]] for lr in lrs]
        upper, lower = axes[0, column], axes[1, column]
        style_of_line = {"color": getattr(theme, colour), "linestyle": line, "marker": "o", "markersize": 4}
        upper.semilogx(lrs, [np.mean(score) for score in scores], **style_of_line, label=method)
        upper.fill_between(
            lrs, [*map(min, scores)], [*map(max, scores)], color=style_of_line["color"], alpha=0.15, lw=0
        )
        if method != "SGD":
            capped = [100 * np.mean([record["capped"] for record in by_lr[lr]]) for lr in lrs]
            lower.semilogx(lrs, capped, **style_of_line)
    for column, name in enumerate(DATA.values()):
        axes[0, column].set(title=name, ylim=(0, 101))
        axes[1, column].set(xlabel="lr", ylim=(-4, 104))
    axes[0, 0].set_ylabel("test accuracy, %")
    axes[1, 0].set_ylabel("capped in the\nlast epoch, %")
    for each in axes.flat:
        each.grid(axis="y")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


if __name__ == "__main__":
    style.save(draw, Path(sys.argv[1]) if len(sys.argv) > 1 else OUT)
