"""The user's own data, by import path: tensors, Datasets or DataLoaders."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.utils.data as torch_data
from torch import Tensor

from polyak_lab import imports
from polyak_lab.config.run import Data
from polyak_lab.data.dataset import Dataset, Split
from polyak_lab.data.images import channel_statistics
from polyak_lab.data.seeded import seeded
from polyak_lab.data.streamed import Streamed, batch_of, first_of, length
from polyak_lab.errors import RowError

WANTED = "pairs (inputs, targets) of tensors, two Datasets or two DataLoaders: for training and test, validation last"


def load(chosen: Data) -> Dataset | Streamed:
    """Call the function of a resolved configuration and read what it returns.

    Raises:
        RowError: There is no such function, it raises, or returns something else.
    """
    function = imports.load(chosen.name, "data")
    what = f"data {chosen.name!r}"
    if not callable(function):
        raise RowError(f"{what} is no function that returns data.")
    imports.check_options(function, chosen.options, what)
    with imports.own_code(what), seeded(0):
        made = function(**chosen.options)
    if isinstance(made, (Dataset, Streamed)):
        return replace(made, name=chosen.name)
    parts = _parts(made, what)
    if all(isinstance(part, torch_data.DataLoader) for part in parts) or all(map(_is_dataset, parts)):
        return _streamed(parts, chosen, what)
    return _in_memory([_split(part, what) for part in parts], chosen, what)


def _parts(made: Any, what: str) -> list[Any]:
    """Return the two or three parts of what a function returned."""
    parts = list(made) if isinstance(made, (tuple, list)) else [made]
    if len(parts) == 4 and not any(isinstance(part, (tuple, list)) for part in parts):
        parts = [tuple(parts[:2]), tuple(parts[2:])]  # inputs, targets, test inputs, test targets
    if len(parts) not in (2, 3):
        kind = f"{len(parts)} parts" if isinstance(made, (tuple, list)) else type(made).__name__
        raise RowError(f"{what} returned {kind}, but must return {WANTED}.")
    return parts


def _is_dataset(part: Any) -> bool:
    return isinstance(part, torch_data.Dataset) and not isinstance(part, torch_data.IterableDataset)


def _split(part: Any, what: str) -> Split:
    if not (isinstance(part, (tuple, list)) and len(part) == 2):
        raise RowError(f"{what} returned {type(part).__name__} as a part, but must return {WANTED}.")
    inputs, targets = (_tensor(value, what) for value in part)
    if inputs.dim() < 2 or len(inputs) != len(targets) or not len(inputs):
        shapes = f"{tuple(inputs.shape)} inputs and {tuple(targets.shape)} targets"
        raise RowError(f"{what} returned {shapes}: it needs as many targets as inputs, one row for each sample.")
    if inputs.dtype == torch.uint8 and inputs.dim() != 4:
        raise RowError(f"{what} returned uint8 inputs, which must be images (n, channels, height, width).")
    return Split(inputs, targets)


def _tensor(value: Any, what: str) -> Tensor:
    """Return a tensor of float32, int64 or, for images, uint8."""
    if isinstance(value, np.ndarray):
        value = torch.tensor(value)
    if not isinstance(value, Tensor) or value.dim() < 1:
        raise RowError(f"{what} returned {type(value).__name__} where a tensor is expected.")
    if value.dtype in (torch.uint8, torch.int64):
        return value
    if value.is_floating_point():
        return value.float()
    if value.is_complex() or value.dtype == torch.bool:
        raise RowError(f"{what} returned {value.dtype}: convert it to float32, int64 or uint8.")
    return value.long()


def _in_memory(splits: list[Split], chosen: Data, what: str) -> Dataset:
    train, test, *held_out = splits
    loss = implied_loss(train.inputs, train.targets)
    for split in splits:
        if split.inputs.shape[1:] != train.inputs.shape[1:] or split.inputs.dtype != train.inputs.dtype:
            raise RowError(f"{what} returned parts of different shapes or types.")
    outputs = chosen.outputs or _outputs(splits, loss)
    if loss == "cross_entropy" and any(s.targets.min() < 0 or s.targets.max() >= (outputs or 0) for s in splits):
        raise RowError(f"{what} returned classes beyond 0 to {(outputs or 0) - 1}.")
    image = train.inputs.dtype == torch.uint8
    mean, std = channel_statistics(train.inputs) if image else (None, None)
    return Dataset(chosen.name, train, test, outputs, loss, mean, std, held_out[0] if held_out else None)


def implied_loss(inputs: Tensor, targets: Tensor) -> str | None:
    """Return the name of the loss for targets of this type and shape, None if there is none."""
    if targets.is_floating_point():
        return "squared"
    if targets.dim() == 1:
        return "cross_entropy"
    return "next_token" if inputs.dtype == torch.int64 and targets.shape == inputs.shape else None


def _outputs(splits: list[Split], loss: str | None) -> int | None:
    """Return the number of outputs that the targets need."""
    if loss == "squared":
        return splits[0].targets[0].numel()
    if loss is None:
        return None
    tokens = [s.inputs for s in splits] if loss == "next_token" else []
    return 1 + max(int(values.max()) for values in (*tokens, *(split.targets for split in splits)))


def _streamed(parts: list[Any], chosen: Data, what: str) -> Streamed:
    train, test, *held_out = parts
    for part in parts:
        if isinstance(part, torch_data.DataLoader) and part.persistent_workers:
            raise RowError(
                f"{what}: persistent_workers keep random states from epoch to epoch, so that a resumed run would "
                "differ: leave them out."
            )
    if isinstance(train, torch_data.DataLoader) and chosen.workers:
        raise RowError(f"{what} returns DataLoaders, which have their own num_workers: leave data.workers out.")
    for samples in (part.dataset if isinstance(part, torch_data.DataLoader) else part for part in parts):
        if not isinstance(samples, torch_data.IterableDataset):
            length(samples, chosen.name)
    inputs, targets = _sample(train, chosen.name, what)
    loss = implied_loss(inputs, targets)
    outputs = chosen.outputs or _stated_outputs(train, targets, loss)
    return Streamed(
        *(chosen.name, train, test, outputs, loss, tuple(inputs.shape[1:]), inputs.dtype == torch.int64),
        *(held_out[0] if held_out else None, chosen.workers or 0),
    )


def _sample(train: Any, name: str, what: str) -> tuple[Tensor, Tensor]:
    """Read a batch of one or more samples; random states are as before."""
    with seeded(0), imports.own_code(what):
        if not isinstance(train, torch_data.DataLoader):
            return batch_of(torch_data.default_collate([train[0]]), name)
        if not isinstance(train.dataset, torch_data.IterableDataset) and train.collate_fn is not None:
            return batch_of(train.collate_fn([train.dataset[0]]), name)
        return batch_of(first_of(train, name), name)


def _stated_outputs(train: Any, targets: Tensor, loss: str | None) -> int | None:
    """Return the width of the targets, or the number of classes by the attribute `classes`, as torchvision has it."""
    if loss == "squared":
        return targets[0].numel()
    dataset = train.dataset if isinstance(train, torch_data.DataLoader) else train
    classes: Any = getattr(dataset, "classes", None)
    return len(classes) if isinstance(classes, (list, tuple, Mapping)) else None
