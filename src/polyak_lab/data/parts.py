"""Parts of a data set, and vectors seen through a kernel."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from polyak_lab.data.dataset import Dataset, Split
from polyak_lab.errors import LabError

PARTS_SEED = 0
_ROWS_AT_ONCE = 1024


def parts(dataset: Dataset, holdout: int | None, train_size: int | None) -> Dataset:
    """Hold training samples out for validation, and train on so many of the others.

    The samples are drawn by one fixed permutation: every seed and every method holds out the same
    ones.

    Raises:
        LabError: There are not that many training samples.
    """
    if holdout is None and train_size is None:
        return dataset
    total = len(dataset.train.targets)
    left = total - (holdout or 0)
    if left < (train_size or 1):
        raise LabError(
            f"{dataset.name} has {total} training samples: holdout = {holdout or 0} and train_size = {train_size or 1} "
            "together must not exceed that."
        )
    order = torch.randperm(total, generator=torch.Generator().manual_seed(PARTS_SEED))
    chosen = _rows(dataset.train, order[:left][:train_size])
    return replace(dataset, train=chosen, validation=_rows(dataset.train, order[left:]) if holdout else None)


def through_kernel(dataset: Dataset, width: float) -> Dataset:
    """Replace every vector by its Gaussian kernel values at the training vectors.

    A linear model of them is a kernel machine, as in the experiments with kernels of Loizou et al.
    (2021), arXiv:2002.10542, section 4.2; on separable data it interpolates.
    """
    if dataset.is_image or dataset.is_text:
        content = "images" if dataset.is_image else "text"
        raise LabError(f"{dataset.name} holds {content}: a kernel (data.kernel_width) needs vectors.")
    centers = dataset.train.inputs
    splits = {name: getattr(dataset, name) for name in ("train", "test", "validation")}
    seen: dict[str, Any] = {name: _seen(split, centers, width) for name, split in splits.items()}
    return replace(dataset, **seen)


def _rows(split: Split, which: Tensor) -> Split:
    return Split(split.inputs[which], split.targets[which])


def _seen(split: Split | None, centers: Tensor, width: float) -> Split | None:
    if split is None:
        return None
    blocks = [_gaussian(rows, centers, width) for rows in split.inputs.split(_ROWS_AT_ONCE)]
    return Split(torch.cat(blocks), split.targets)


def _gaussian(rows: Tensor, centers: Tensor, width: float) -> Tensor:
    return torch.cdist(rows, centers).square_().div_(-2 * width**2).exp_()
