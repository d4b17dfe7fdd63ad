"""Draw what momentum does without a cap that binds: `python docs/figures/momentum.py [FILE.svg]`."""

import sys
import warnings
from pathlib import Path

import numpy as np
import style
import torch
from matplotlib.figure import Figure

import polyak

OUT = Path(__file__).with_suffix(".svg")
STEPS = 500
A = torch.randn(20, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
CASES = {  # name: options, colour
    "momentum 0.9, lr 1: the cap does not bind": ({"lr": 1.0, "momentum": 0.9}, "orange"),
    "momentum 0.9, lr 0.003: the cap binds": ({"lr": 0.003, "momentum": 0.9}, "green"),
    "no momentum, lr 1": ({"lr": 1.0}, "blue"),
}


def distances(**options: float) -> np.ndarray:
    """Return the distance to the solution over the steps, one row of the least-squares problem at a time."""
    w = torch.nn.Parameter(torch.zeros(10, dtype=torch.float64))
    optimizer, found = polyak.ALIG([w], eps=0.0, **options), []
    for t in range(STEPS):
        found.append((w.detach() - 1).norm().item())
        loss = (A[t % 20] @ (w - 1)).square()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(loss=loss)
    return np.array(found)


def draw(theme: style.Theme) -> Figure:
    """Draw the figure."""
    figure, axes = style.one(7.2, 3.6)
    for name, (options, colour) in CASES.items():
        axes.semilogy(distances(**options), color=getattr(theme, colour), linewidth=1.8, label=name)
    axes.set(xlabel="step", ylabel="distance to the solution", xlim=(0, STEPS))
    axes.grid(axis="y")
    axes.legend(loc="upper left", bbox_to_anchor=(0, 1.28))
    return figure


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # one of the runs is meant to diverge, and the optimizer warns of it
    style.save(draw, Path(sys.argv[1]) if len(sys.argv) > 1 else OUT)
