"""Draw the step size and the length of the steps over a training on digits.

`python docs/figures/step_size.py [FILE.svg]`
"""

import sys
from pathlib import Path

import numpy as np
import style
import torch
from matplotlib.figure import Figure

import polyak
from polyak_lab import data

OUT = Path(__file__).with_suffix(".svg")
EPOCHS, BATCH = 12, 32
CAPS = {0.1: "green", 1.0: "blue", float("inf"): "orange"}


def train(lr: float) -> np.ndarray:
    """Train a small network; return for every step its step size and how far the weights moved."""
    torch.manual_seed(0)
    images, labels = digits()
    model = torch.nn.Sequential(torch.nn.Linear(64, 512), torch.nn.ReLU(), torch.nn.Linear(512, 10))
    optimizer, found = polyak.ALIG(model.parameters(), lr=lr), []
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(images)).split(BATCH):
            loss = torch.nn.functional.cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step(loss=loss)
            last = optimizer.last_step()
            found.append((last.step_size.item(), (last.step_size * last.grad_sq_norm.sqrt()).item()))
    return np.array(found)


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the training images as vectors, and their labels."""
    dataset = data.load("digits")
    pixels = dataset.train.inputs.flatten(1).float() / 255
    return (pixels - pixels.mean()) / pixels.std(), dataset.train.targets


def draw(theme: style.Theme) -> Figure:
    """Draw both, a point for every step and a line through the medians of the epochs."""
    figure = Figure(figsize=(8.4, 3.5), layout="constrained")
    axes = figure.subplots(1, 2)
    for lr, colour in CAPS.items():
        values = train(lr)
        epochs = np.arange(len(values)) / len(values) * EPOCHS
        for each, column in zip(axes, values.T, strict=True):
            each.semilogy(epochs, column, ".", color=getattr(theme, colour), markersize=2, alpha=0.45, rasterized=True)
            medians = np.median(column.reshape(EPOCHS, -1), axis=1)
            each.plot(
                np.arange(EPOCHS) + 0.5, medians, color=getattr(theme, colour), linewidth=2.2, label=f"lr = {lr:g}"
            )
    for each, title in zip(axes, ("step size γ", "length of the step, γ‖g‖"), strict=True):
        each.set(title=title, xlabel="epoch", xlim=(0, EPOCHS))
        each.grid(axis="y")
    axes[1].legend()
    return figure


if __name__ == "__main__":
    style.save(draw, Path(sys.argv[1]) if len(sys.argv) > 1 else OUT)
