"""Mini-batches of tensors that are already on the device.

Random numbers come from independent generators, seeded by a purpose, the seed and the epoch. The
order of the batches therefore does not depend on the initial weights, and a resumed run repeats it
without any stored generator state.
"""

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor

from polyak_lab.data import Dataset, Split
from polyak_lab.data.augment import crop_flip, normalise
from polyak_lab.processes import group

Batch = tuple[Tensor, Tensor]

# Fits the cache of a CPU; 2.5 times faster than 1000 for a small ResNet.
EVALUATION_BATCH_SIZE = {"cpu": 125}
DEFAULT_EVALUATION_BATCH_SIZE = 1000


def evaluation_batch_size(device: torch.device) -> int:
    """Return the number of samples that a device evaluates at once."""
    return EVALUATION_BATCH_SIZE.get(device.type, DEFAULT_EVALUATION_BATCH_SIZE)


def derive_seed(purpose: str, seed: int, epoch: int = 0) -> int:
    """Return a 63-bit seed of an independent stream of random numbers."""
    digest = hashlib.sha256(f"{purpose}:{seed}:{epoch}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(device: torch.device, purpose: str, seed: int, epoch: int = 0) -> torch.Generator:
    """Return the generator of an independent stream on a device."""
    return torch.Generator(device).manual_seed(derive_seed(purpose, seed, epoch))


def batch_sizes(samples: int, batch_size: int, max_batches: int | None) -> list[int]:
    """Return the number of samples in each batch of an epoch; a smaller last batch is kept."""
    starts = range(0, samples, batch_size)[:max_batches]
    return [min(batch_size, samples - start) for start in starts]


def permutation(samples: int, seed: int, epoch: int) -> Tensor:
    """Return the order of the training samples in an epoch."""
    on_cpu = generator(torch.device("cpu"), "shuffle", seed, epoch)
    return torch.randperm(samples, generator=on_cpu)


def training_batches(
    dataset: Dataset,
    batch_size: int,
    seed: int,
    epoch: int,
    augment: bool,
) -> Iterator[Batch]:
    """Yield this rank's part of the batches of an epoch, in the same order on every device."""
    device = dataset.train.targets.device
    order = permutation(len(dataset.train.targets), seed, epoch)
    crops = generator(device, "augment", seed, epoch) if augment else None
    for indices in order.to(device).split(batch_size):
        yield prepare(dataset, dataset.train.inputs[indices], dataset.train.targets[indices], crops)


def evaluation_batches(
    dataset: Dataset,
    split: Split,
    crops: torch.Generator | None = None,
) -> Iterator[Batch]:
    """Yield this rank's part of a split in order; a generator crops and flips images."""
    size = evaluation_batch_size(split.targets.device)
    for inputs, targets in zip(split.inputs.split(size), split.targets.split(size), strict=True):
        yield prepare(dataset, inputs, targets, crops)


def prepare(
    dataset: Dataset,
    inputs: Tensor,
    targets: Tensor,
    crops: torch.Generator | None,
) -> Batch:
    """Turn a whole batch, as it is stored, into the model's input and targets on this rank.

    Crops are drawn for the whole batch, so that they do not depend on the number of processes.
    """
    own = group.local_slice(len(targets))
    whole = inputs if crops is None else crop_flip(inputs, crops)
    return as_model_input(dataset, whole[own]), targets[own]


def as_model_input(dataset: Dataset, inputs: Tensor) -> Tensor:
    """Normalise images; other inputs go to the model as they are."""
    if dataset.mean is None or dataset.std is None:
        return inputs
    return normalise(inputs, dataset.mean, dataset.std)
