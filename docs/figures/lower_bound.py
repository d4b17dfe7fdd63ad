"""Measure, and draw from the stored numbers, what a lower bound that is too low or too high does.

`python docs/figures/lower_bound.py --measure` repeats the runs (a few minutes); without it the figure is drawn.

The problem has a loss that cannot reach 0, and its floor is known: inputs x ∈ R²⁰ are normal, labels are drawn from
softmax(Wx) with a fixed W, and a linear model sees every sample once. No model has a mean loss below the mean entropy H
of these labels, and W itself reaches it. Every run makes 1,500 steps with batches of 64, from 0, over three seeds.

Expected, and written down before the first run, for the loss above H on 20,000 other samples at the end:
- The bound 0 is too low: steps are too long by loss / (loss − H) near the optimum. Without a cap (lr = 100) ALI-G and
  SPS stay clearly above H. With lr = 1 the cap binds, they are SGD, and the bound does not matter.
- H itself is best for all, or near it. A step on a batch whose loss lies below H does not move.
- A bound that is too high stops them early: where the batches' losses reach it, so about at bound − H above the floor,
  with the cap as well as without.
- MoMo averages losses and gradients, and is hurt less by noise; with learn_lower_bound=True it comes within twice what
  it reaches with H from every bound below H. A bound above H is kept, since it is the least that is learned.
"""

import json
import sys
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import style
import torch
from matplotlib.figure import Figure

import polyak

ROOT = Path(__file__).parents[2]
RUNS = ROOT / "results" / "2026-11-26-lower-bound-cpu"
OUT = Path(__file__).with_suffix(".svg")
INPUTS, CLASSES, BATCH, STEPS, SEEDS = 20, 5, 64, 1500, (0, 1, 2)
BOUNDS = (0.0, 0.5, 0.9, 1.0, 1.1, 1.5)  # in units of H
CAPS = (1.0, 100.0)
METHODS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "ALI-G": (polyak.ALIG, {}, "blue"),
    "SPS, c 0.5": (polyak.SPS, {"c": 0.5}, "green"),
    "MoMo": (polyak.MoMo, {}, "orange"),
    "MoMo, learned bound": (polyak.MoMo, {"learn_lower_bound": True}, "purple"),
}


class Problem:
    """Samples with the labels of a softmax model, and the mean entropy H of its labels."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.teacher = torch.randn(INPUTS, CLASSES, generator=self.generator) / 4
        self.test = self.draw(20_000)
        logits = (self.test[0] @ self.teacher).log_softmax(1)
        self.floor = -(logits.exp() * logits).sum(1).mean().item()
        self.start = self.generator.get_state()

    def draw(self, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw inputs and their labels."""
        x = torch.randn(n, INPUTS, generator=self.generator)
        return x, torch.multinomial((x @ self.teacher).softmax(1), 1, generator=self.generator)[:, 0]

    def train(self, cls: Any, options: dict[str, Any], lr: float, bound: float) -> float:
        """Return the loss of the teacher's problem above that of the teacher after a run."""
        self.generator.set_state(self.start)  # the same batches for every method
        w = torch.nn.Parameter(torch.zeros(INPUTS, CLASSES))
        optimizer = cls([w], lr=lr, lower_bound=bound * self.floor, **options)
        for _ in range(STEPS):
            x, y = self.draw(BATCH)
            loss = torch.nn.functional.cross_entropy(x @ w, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step(loss=loss)
        x, y = self.test
        with torch.no_grad():
            best = torch.nn.functional.cross_entropy(x @ self.teacher, y)
            return (torch.nn.functional.cross_entropy(x @ w, y) - best).item()


def measure() -> None:
    """Run everything; store the numbers and a table."""
    problems, rows = [Problem(seed) for seed in SEEDS], []
    for lr in CAPS:
        for name, (cls, options, _) in METHODS.items():
            for bound in BOUNDS:
                found = [problem.train(cls, options, lr, bound) for problem in problems]
                rows.append({"method": name, "lr": lr, "bound": bound, "above_floor": found})
                print(name, lr, bound, found, flush=True)
    stored = {"torch": torch.__version__, "floors": [problem.floor for problem in problems], "rows": rows}
    (RUNS / "runs.json").write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    (RUNS / "table.md").write_text(table(rows), encoding="utf-8")


def table(rows: list[dict[str, Any]]) -> str:
    """Return the table of the page: a line for each method and cap, a column for each bound."""
    names = ("0", *(f"{bound:g} H" if bound != 1 else "H" for bound in BOUNDS[1:]))
    lines = [f"| method | lr | {' | '.join(names)} |", "| --- | ---: |" + " ---: |" * len(BOUNDS)]
    for method, lr in dict.fromkeys((row["method"], row["lr"]) for row in rows):
        of_row = {row["bound"]: row["above_floor"] for row in rows if (row["method"], row["lr"]) == (method, lr)}
        cells = [f"{fmean(of_row[bound]):.3f} ± {stdev(of_row[bound]):.3f}" for bound in BOUNDS]
        lines.append(f"| {method} | {lr:g} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw(theme: style.Theme) -> Figure:
    """Draw the loss above the floor against the bound, with and without a cap that counts."""
    rows = json.loads((RUNS / "runs.json").read_text(encoding="utf-8"))["rows"]
    figure = Figure(figsize=(8.4, 3.6), layout="constrained")
    for axes, lr in zip(figure.subplots(1, 2, sharey=True), CAPS, strict=True):
        for name, (*_, colour) in METHODS.items():
            found = [row["above_floor"] for row in rows if (row["method"], row["lr"]) == (name, lr)]
            line = {"color": getattr(theme, colour), "marker": "o", "markersize": 4, "label": name}
            axes.semilogy(BOUNDS, [*map(fmean, found)], **line)
            axes.fill_between(BOUNDS, [*map(min, found)], [*map(max, found)], color=line["color"], alpha=0.15, lw=0)
        axes.axvline(1.0, color=theme.faint, zorder=0)
        axes.set(title=f"lr = {lr:g}", xlabel="lower_bound / entropy floor")
        axes.grid(axis="y")
    figure.axes[0].set_ylabel("test loss above the floor")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


if __name__ == "__main__":
    given = [argument for argument in sys.argv[1:] if argument != "--measure"]
    if "--measure" in sys.argv:
        measure()
    style.save(draw, Path(given[0]) if given else OUT)
