"""A network and data of your own, which own_recipe.toml names: polyak run own_recipe.toml."""

import torch
from torch import nn


def load(samples: int = 600, noise: float = 0.1) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
    """Return two moons: points (n, 2) and classes, for training and for testing."""
    angle = torch.pi * torch.rand(samples)
    upper = torch.rand(samples) < 0.5
    x = torch.where(upper, angle.cos(), 1 - angle.cos())
    y = torch.where(upper, angle.sin(), 0.5 - angle.sin())
    points = torch.stack([x, y], 1) + noise * torch.randn(samples, 2)
    classes, test = upper.long(), samples // 4
    return (points[test:], classes[test:]), (points[:test], classes[:test])


def build(shape: tuple[int, ...], outputs: int, width: int = 32) -> nn.Module:
    """Return a network with one hidden layer."""
    return nn.Sequential(nn.Linear(shape[0], width), nn.Tanh(), nn.Linear(width, outputs))
