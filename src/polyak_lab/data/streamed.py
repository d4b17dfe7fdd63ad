"""Data that is read while a run trains: Datasets of torch, or DataLoaders."""

from dataclasses import dataclass
from typing import Any, Literal, final

import torch.utils.data as torch_data
from torch import Tensor

from polyak_lab.errors import RowError
from polyak_lab.imports import own_code

Part = torch_data.Dataset[Any] | torch_data.DataLoader[Any]


@final
@dataclass(frozen=True)
class Streamed:
    """A data set that is read batch by batch; its inputs go to the model as they are."""

    name: str
    train: Part
    test: Part
    outputs: int | None
    loss: str | None
    """The name of the loss that the targets imply, None if they imply none."""
    shape: tuple[int, ...]
    is_text: bool
    validation: Part | None = None
    workers: int = 0
    """Worker processes that read Datasets; DataLoaders have their own."""
    is_image: Literal[False] = False

    def to(self, device: object) -> "Streamed":
        """Return itself: batches are moved one by one."""
        return self

    @property
    def train_samples(self) -> int | None:
        """The number of training samples, None for DataLoaders."""
        return None if isinstance(self.train, torch_data.DataLoader) else length(self.train, self.name)


def length(part: Any, name: str) -> int:
    """Return the number of samples of a Dataset, or of batches of a DataLoader."""
    with own_code(f"data {name!r}"):
        count = len(part)
    if count < 1:
        raise RowError(f"data {name!r}: a part has no samples.")
    return count


def first_of(loader: Any, name: str) -> Any:
    """Return the first batch of a DataLoader."""
    for batch in loader:
        return batch
    raise RowError(f"data {name!r} gave no batch.")


def batch_of(value: Any, name: str) -> tuple[Tensor, Tensor]:
    """Check that a batch is a pair of tensors with as many inputs as targets."""
    if isinstance(value, (list, tuple)) and len(value) == 2 and all(isinstance(part, Tensor) for part in value):
        inputs, targets = value
        if inputs.dim() and targets.dim() and len(inputs) == len(targets):
            return inputs, targets
        raise RowError(
            f"data {name!r} gave a batch of {tuple(inputs.shape)} inputs and {tuple(targets.shape)} targets."
        )
    raise RowError(f"data {name!r} gave a batch of {type(value).__name__}: it must be a pair of tensors.")
