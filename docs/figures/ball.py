"""Draw steps inside an l2 ball: `python docs/figures/ball.py [FILE.svg]`."""

import sys
from pathlib import Path

import numpy as np
import style
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Circle

import polyak

OUT = Path(__file__).with_suffix(".svg")
RADIUS, STEPS, LR = 1.0, 5, 0.4
TARGET = torch.tensor([1.5, 0.9], dtype=torch.float64)
WEIGHTS = torch.tensor([1.0, 1.6], dtype=torch.float64)


def loss(w: torch.Tensor) -> torch.Tensor:
    """Return a quadratic whose minimum is outside of the ball."""
    return (WEIGHTS * (w - TARGET).square()).sum() / 2


def path() -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return for each step the point before, the point that the step alone would reach, and the point after."""
    w = torch.nn.Parameter(torch.tensor([-0.6, -0.55], dtype=torch.float64))
    optimizer, points = polyak.ALIG([w], lr=LR, constraint=polyak.L2Ball(RADIUS)), []
    for _ in range(STEPS):
        before, value = w.detach().clone(), loss(w)
        optimizer.zero_grad()
        value.backward()
        optimizer.step(loss=value)
        free = before - optimizer.param_groups[0]["step_size"] * w.grad
        points.append((before.numpy(), free.numpy(), w.detach().clone().numpy()))
    return points


def draw(theme: style.Theme) -> Figure:
    """Draw the figure."""
    figure, axes = style.one(6.2, 4.2)
    x, y = np.meshgrid(np.linspace(-1.3, 2.7, 200), np.linspace(-1.2, 1.6, 200))
    heights = (WEIGHTS[0].item() * (x - TARGET[0].item()) ** 2 + WEIGHTS[1].item() * (y - TARGET[1].item()) ** 2) / 2
    axes.contour(x, y, heights, levels=np.geomspace(0.05, 9, 9), colors=theme.faint, linewidths=0.9)
    axes.add_patch(Circle((0, 0), RADIUS, facecolor=theme.blue, alpha=0.12))
    axes.add_patch(Circle((0, 0), RADIUS, fill=False, edgecolor=theme.blue, linewidth=1.8))
    for before, free, after in path():
        axes.plot(*zip(before, free, strict=True), color=theme.green, linewidth=1.8)
        axes.plot(*zip(free, after, strict=True), ":", color=theme.orange, linewidth=2)
        axes.plot(*after, "o", color=theme.green, markersize=5)
    start = path()[0][0]
    axes.plot(*start, "o", color=theme.text, markersize=7)
    axes.plot(*TARGET, "x", color=theme.text, markersize=8)
    axes.annotate("start", start, (0, -16), textcoords="offset points", ha="center")
    axes.annotate("minimum of the loss", TARGET, (8, 0), textcoords="offset points", va="center", fontsize=10)
    axes.annotate("step", (-0.35, 0.28), color=theme.green, ha="right")
    axes.annotate("projection", (1.02, 1.06), color=theme.orange, ha="left", va="bottom")
    axes.text(0.0, -RADIUS + 0.1, "‖x‖ ≤ radius", color=theme.blue, ha="center", va="bottom")
    axes.set(xlim=(-1.25, 2.6), ylim=(-1.15, 1.5), xticks=[], yticks=[], aspect="equal")
    axes.spines[["left", "bottom"]].set_visible(False)
    return figure


if __name__ == "__main__":
    style.save(draw, Path(sys.argv[1]) if len(sys.argv) > 1 else OUT)
