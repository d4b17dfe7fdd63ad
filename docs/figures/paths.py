"""Draw paths of SGD, Adam and Polyak steps in a narrow valley: `python docs/figures/paths.py [FILE.svg]`."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import style
import torch
from matplotlib.figure import Figure

import polyak

OUT = Path(__file__).with_suffix(".svg")
START, CURVATURE, STEPS = (-2.0, 1.0), torch.tensor([1.0, 12.0], dtype=torch.float64), 40
SGD_LR, ADAM_LR = 0.15, 0.3  # SGD is stable up to 2/12

Make = Callable[[torch.nn.Parameter], torch.optim.Optimizer]
METHODS: dict[str, tuple[Make, str]] = {
    f"SGD, lr {SGD_LR:g}": (lambda w: torch.optim.SGD([w], lr=SGD_LR), "purple"),
    f"Adam, lr {ADAM_LR:g}": (lambda w: torch.optim.Adam([w], lr=ADAM_LR), "orange"),
    "ALI-G, no cap": (lambda w: polyak.ALIG([w], lr=float("inf"), eps=0.0), "blue"),
}


def loss(w: torch.Tensor) -> torch.Tensor:
    """Return a quadratic in a narrow valley, with minimum 0."""
    return (CURVATURE * w.square()).sum() / 2


def path(make: Make) -> tuple[np.ndarray, np.ndarray]:
    """Return the points and their losses."""
    w = torch.nn.Parameter(torch.tensor(START, dtype=torch.float64))
    optimizer, points, losses = make(w), [w.detach().clone()], [loss(w).item()]
    for _ in range(STEPS):

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            with torch.enable_grad():
                value = loss(w)
                value.backward()
            return value

        optimizer.step(closure)
        points.append(w.detach().clone())
        losses.append(loss(w).item())
    return torch.stack(points).numpy(), np.array(losses)


def draw(theme: style.Theme) -> Figure:
    """Draw the paths, and the losses over the steps."""
    figure = Figure(figsize=(8.4, 3.5), layout="constrained")
    valley, curves = figure.subplots(1, 2, width_ratios=(1.25, 1))
    x, y = np.meshgrid(np.linspace(-2.4, 1.2, 200), np.linspace(-1.1, 1.25, 200))
    heights = (x**2 + CURVATURE[1].item() * y**2) / 2
    valley.contour(x, y, heights, levels=np.geomspace(0.05, 12, 8), colors=theme.faint, linewidths=0.9)
    for name, (make, colour) in METHODS.items():
        points, losses = path(make)
        valley.plot(*points.T, "o-", color=getattr(theme, colour), markersize=3, linewidth=1.4, label=name)
        curves.semilogy(losses, color=getattr(theme, colour), linewidth=1.8)
    valley.plot(*START, "o", color=theme.text, markersize=6)
    valley.plot(0, 0, "x", color=theme.text, markersize=8, zorder=4)
    valley.annotate("start", START, (0, 8), textcoords="offset points", ha="center")
    valley.set(xticks=[], yticks=[], xlim=(-2.4, 1.2), ylim=(-1.1, 1.3))
    valley.spines[["left", "bottom"]].set_visible(False)
    curves.set(xlabel="step", title="loss")
    curves.grid(axis="y")
    figure.legend(loc="outside lower center", ncols=3)
    return figure


if __name__ == "__main__":
    style.save(draw, Path(sys.argv[1]) if len(sys.argv) > 1 else OUT)
