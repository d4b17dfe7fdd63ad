"""From arrays of pixels and labels to a `Dataset`."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from polyak_lab.data.dataset import Dataset, Split
from polyak_lab.data.source import damaged


def labelled(images: np.ndarray, labels: np.ndarray, classes: int, where: Path) -> Split:
    """Return images (n, C, H, W) with their labels, checked to be in 0..classes − 1."""
    if len(images) != len(labels) or not len(images):
        raise damaged(where, f"{len(images)} images and {len(labels)} labels")
    if labels.min() < 0 or labels.max() >= classes:
        raise damaged(where, f"labels from {labels.min()} to {labels.max()} instead of 0 to {classes - 1}")
    # Copied, since arrays over a file's bytes are read-only and torch has no such tensors.
    return Split(torch.tensor(images), torch.tensor(labels, dtype=torch.int64))


def classification(name: str, train: Split, test: Split, classes: int) -> Dataset:
    """Return a classification problem, normalised by its training images."""
    mean, std = channel_statistics(train.inputs)
    return Dataset(name, train, test, classes, "cross_entropy", mean, std)


def channel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of every channel in 0..1, exactly."""
    counts = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)])
    share = counts / counts.sum(1, keepdim=True, dtype=torch.float64)
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = share @ values
    variance = (share * (values - mean[:, None]) ** 2).sum(1)
    # A constant channel must not divide by zero: one grey level is the smallest sensible scale.

    return mean.float(), variance.sqrt().clamp_min(1 / 255).float()
