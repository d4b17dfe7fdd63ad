"""A small convolutional network without normalization, for experiments on a CPU."""

from torch import nn


def cnn(shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Return two convolutions of 16 and 32 channels with stride 2 and ReLU, and one linear layer."""
    channels, height, width = shape
    features = 32 * -(-height // 4) * -(-width // 4)
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(features, outputs),
    )
