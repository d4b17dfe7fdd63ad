"""Parts of a data set, and vectors seen through a kernel."""

from dataclasses import replace
from typing import Any

import torch
import torch.utils.data as torch_data
from torch import Tensor

from polyak_lab.data.dataset import Dataset, Split
from polyak_lab.data.streamed import Streamed
from polyak_lab.errors import LabError

PARTS_SEED = 0
_ROWS_AT_ONCE = 1024


def parts(dataset: Dataset | Streamed, holdout: int | None, train_size: int | None) -> Dataset | Streamed:
    """Hold training samples out for validation, and train on so many of the others.

    The samples are drawn by one fixed permutation: every seed and every method holds out the same
    ones.

    Raises:
        LabError: There are not that many training samples.
    """
    if holdout is None and train_size is None:
        return dataset
    total = dataset.train_samples if isinstance(dataset, Streamed) else len(dataset.train.targets)
    if total is None:
        raise LabError(
            f"{dataset.name} has DataLoaders: return a third one for validation, and leave holdout and train_size out."
        )
    left = total - (holdout or 0)
    if left < (train_size or 1):
        raise LabError(f"{dataset.name} has {total} training samples: {_too_many(total, holdout, train_size)}.")
    order = torch.randperm(total, generator=torch.Generator().manual_seed(PARTS_SEED))
    chosen, rest = order[:left][:train_size], order[left:]
    changed: dict[str, Any] = {"train": _rows(dataset.train, chosen)}
    if holdout:
        changed["validation"] = _rows(dataset.train, rest)
    return replace(dataset, **changed)


def _too_many(total: int, holdout: int | None, train_size: int | None) -> str:
    if holdout is None:
        return f"train_size is {train_size}, but must be {total} or less"
    if train_size is None:
        return f"holdout is {holdout}, but must be {total - 1} or less"
    return f"holdout = {holdout} and train_size = {train_size} together must not exceed that"


def through_kernel(dataset: Dataset | Streamed, width: float) -> Dataset:
    """Replace every vector by its Gaussian kernel values at the training vectors.

    A linear model of them is a kernel machine, as in the experiments with kernels of Loizou et al.
    (2021), arXiv:2002.10542, section 4.2; on separable data it interpolates.
    """
    if isinstance(dataset, Streamed) or dataset.is_image or dataset.is_text:
        content = "images" if dataset.is_image else "text" if dataset.is_text else "data that is not in memory"
        raise LabError(f"{dataset.name} holds {content}: a kernel (data.kernel_width) needs vectors.")
    centers = dataset.train.inputs
    splits = {name: getattr(dataset, name) for name in ("train", "test", "validation")}
    seen: dict[str, Any] = {name: _seen(split, centers, width) for name, split in splits.items()}
    return replace(dataset, **seen)


def _rows(split: Any, which: Tensor) -> Any:
    if not isinstance(split, Split):
        return torch_data.Subset(split, which.tolist())
    return Split(split.inputs[which], split.targets[which])


def _seen(split: Split | None, centers: Tensor, width: float) -> Split | None:
    if split is None:
        return None
    blocks = [_gaussian(rows, centers, width) for rows in split.inputs.split(_ROWS_AT_ONCE)]
    return Split(torch.cat(blocks), split.targets)


def _gaussian(rows: Tensor, centers: Tensor, width: float) -> Tensor:
    return torch.cdist(rows, centers).square_().div_(-2 * width**2).exp_()
