"""A small network."""

from torch import nn


def build(shape: tuple[int, ...], outputs: int, width: int = 32) -> nn.Module:
    """Return two hidden layers."""
    return nn.Sequential(
        nn.Linear(shape[0], width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs)
    )
