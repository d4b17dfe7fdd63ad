"""Mini-batches of tensors that already lie on the device.

Every random number comes from a stream named by its purpose, the seed and the epoch. So the order of the batches does
not depend on the initial weights, and a resumed run needs no stored generator to see the batches it would have seen.
"""

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor

from polyak_lab.data import Dataset, Split
from polyak_lab.data.augment import crop_flip, normalise

Batch = tuple[Tensor, Tensor]

EVALUATION_BATCH = {"cpu": 125}  # what fits into a CPU's cache; 2.5 times faster there than 1000 for a small ResNet
LARGE_BATCH = 1000


def stream_seed(purpose: str, seed: int, epoch: int = 0) -> int:
    """Name an independent stream of random numbers by a 63-bit seed."""
    digest = hashlib.sha256(f"{purpose}:{seed}:{epoch}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(device: torch.device, purpose: str, seed: int, epoch: int = 0) -> torch.Generator:
    """Open a stream on a device."""
    return torch.Generator(device).manual_seed(stream_seed(purpose, seed, epoch))


def steps_per_epoch(samples: int, batch_size: int, max_batches: int | None) -> int:
    """Count the batches of an epoch; the last one may be smaller and is kept."""
    steps = -(-samples // batch_size)
    return steps if max_batches is None else min(steps, max_batches)


def training_batches(dataset: Dataset, size: int, seed: int, epoch: int, augment: bool) -> Iterator[Batch]:
    """Yield one epoch in a fresh random order; the order is drawn on the CPU so that every device sees the same."""
    device = dataset.train.targets.device
    order = torch.randperm(len(dataset.train.targets), generator=generator(torch.device("cpu"), "shuffle", seed, epoch))
    shifts = generator(device, "augment", seed, epoch) if augment else None
    for chosen in order.to(device).split(size):
        yield ready(dataset, dataset.train.inputs[chosen], shifts), dataset.train.targets[chosen]


def evaluation_batches(dataset: Dataset, split: Split, shifts: torch.Generator | None = None) -> Iterator[Batch]:
    """Yield a split in its stored order, cropped and flipped only if a generator for it is given."""
    size = EVALUATION_BATCH.get(split.targets.device.type, LARGE_BATCH)
    parts = zip(split.inputs.split(size), split.targets.split(size), strict=True)
    for inputs, targets in parts:
        yield ready(dataset, inputs, shifts), targets


def ready(dataset: Dataset, inputs: Tensor, shifts: torch.Generator | None) -> Tensor:
    """Turn stored inputs into what the model reads."""
    if not dataset.is_image:
        return inputs
    images = inputs if shifts is None else crop_flip(inputs, shifts)
    return normalise(images, dataset.mean, dataset.std)
