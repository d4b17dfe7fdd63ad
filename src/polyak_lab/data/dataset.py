"""What every reader returns: tensors of a train and a test split, and their description."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Split:
    """Inputs and targets of one part of a data set."""

    inputs: Tensor
    """Images: uint8 (n, C, H, W). Vectors: float32 (n, d). Text: int64 (n, context)."""
    targets: Tensor
    """int64 (n,) for classes, float32 (n,) of ±1 for "logistic", float32 (n, outputs) for regression, int64
    (n, context) for text."""

    def to(self, device: torch.device | str) -> "Split":
        """Return the same split on another device."""
        return Split(self.inputs.to(device), self.targets.to(device))


@dataclass(frozen=True)
class Dataset:
    """A data set as tensors, with the name of its loss."""

    name: str
    train: Split
    test: Split
    outputs: int | None
    """Number of classes, characters of the vocabulary, or the width of the output; None where it is not known."""
    loss: str | None
    """"cross_entropy", "logistic" (targets ±1, one output), "squared" or "next_token"; None where the run says it."""
    mean: Tensor | None = None
    """Per-channel mean (C,) of the training images in 0..1; None for vectors."""
    std: Tensor | None = None
    """Per-channel standard deviation (C,) of the training images in 0..1; None for vectors."""
    validation: Split | None = None
    """Training samples that were held out, if any were."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input: (C, H, W), (d,) or (context,)."""
        return tuple(self.train.inputs.shape[1:])

    @property
    def is_image(self) -> bool:
        """Whether the inputs are uint8 images, which the runner normalises."""
        return self.train.inputs.dtype == torch.uint8

    @property
    def is_text(self) -> bool:
        """Whether the inputs are sequences of tokens."""
        return self.train.inputs.dtype == torch.int64

    def to(self, device: torch.device | str) -> "Dataset":
        """Return the same data set on another device."""
        mean, std = (None if x is None else x.to(device) for x in (self.mean, self.std))
        held_out = None if self.validation is None else self.validation.to(device)
        train, test = self.train.to(device), self.test.to(device)
        return replace(self, train=train, test=test, validation=held_out, mean=mean, std=std)
