"""Networks without convolutions; all flatten their input."""

import math

from torch import nn


def mlp(shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Return a network with hidden layers of 512 and 256 ReLU units."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(math.prod(shape), 512),
        nn.ReLU(),
        nn.Linear(512, 256),
        nn.ReLU(),
        nn.Linear(256, outputs),
    )


def logistic(shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Return one linear layer with bias: (multinomial) logistic regression."""
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), outputs))


def linear(shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Return one linear layer without bias, as in the kernel code of Loizou et al. (2021)."""
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), outputs, bias=False))


def deep_linear(shape: tuple[int, ...], outputs: int, rank: int) -> nn.Module:
    """Return x ↦ W₂W₁x, the deep matrix factorisation of Loizou et al. (2021), arXiv:2002.10542, section 4.

    Args:
        shape: (d,).
        outputs: Rows of W₂.
        rank: Hidden width k, W₁ being k×d. Below the rank of the matrix to factor the model cannot
            interpolate.
    """
    (features,) = shape
    return nn.Sequential(nn.Linear(features, rank, bias=False), nn.Linear(rank, outputs, bias=False))
