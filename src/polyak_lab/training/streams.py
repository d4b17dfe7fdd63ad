"""Mini-batches of data that is read while a run trains.

Datasets are read in the order in which tensors are: by one permutation for each seed and epoch.
DataLoaders have an order of their own; the generators of a loader and of its sampler are seeded
for every epoch, so that a resumed run reads the same batches. Every rank reads the whole batch and
takes its part, so that results do not depend on the number of processes.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.utils.data as torch_data
from torch import Tensor

from polyak_lab.config.run import Training
from polyak_lab.data.seeded import seed_python
from polyak_lab.data.streamed import Part, Streamed, batch_of, first_of, length
from polyak_lab.errors import RowError
from polyak_lab.processes import group
from polyak_lab.training.batches import (
    Batch,
    batch_sizes,
    derive_seed,
    evaluation_batch_size,
    permutation,
)


def streamed_sizes(streamed: Streamed, training: Training) -> list[int]:
    """Return the number of samples in each batch of an epoch; for a DataLoader, its batch size for all."""
    samples = streamed.train_samples
    if samples is not None:
        return batch_sizes(samples, training.batch_size, training.max_batches)
    loader: Any = streamed.train
    return [loader.batch_size or training.batch_size] * _count(loader, streamed.name, training.max_batches)


def training_stream(streamed: Streamed, training: Training, epoch: int) -> Iterator[tuple[Batch, int]]:
    """Yield this rank's part of the batches of an epoch, and the samples of each over all ranks."""
    part = streamed.train
    if isinstance(part, torch_data.DataLoader):
        loader = _seed_loader(part, training.order_seed, epoch)
    else:
        order = permutation(length(part, streamed.name), training.order_seed, epoch).tolist()
        loader = _loader(part, training.batch_size, streamed.workers, order, training.order_seed, epoch)
    seed_python(derive_seed("samples", training.order_seed, epoch))  # for a Dataset that is read without workers
    expected = len(streamed_sizes(streamed, training))
    for count, batch in enumerate(_parts(loader, streamed, training.device), 1):
        yield batch
        if count == expected:
            return
    raise RowError(f"data {streamed.name!r} ended before its {expected} batches, which its length promises.")


def evaluation_stream(streamed: Streamed, part: Part, training: Training) -> Iterator[Batch]:
    """Yield this rank's part of a split in its order."""
    if isinstance(part, torch_data.DataLoader):
        loader = _seed_loader(part, training.order_seed, 0)
    else:
        size = evaluation_batch_size(torch.device(training.device))
        loader = _loader(part, size, streamed.workers, range(length(part, streamed.name)), training.order_seed, 0)
    count = 0
    for count, (batch, _) in enumerate(_parts(loader, streamed, training.device), 1):  # noqa: B007
        yield batch
    if not count:
        raise RowError(f"data {streamed.name!r} gave no batch to evaluate.")


def first_batch(streamed: Streamed, size: int) -> tuple[Tensor, Tensor]:
    """Read so many training samples, or the first batch of a DataLoader."""
    part: Any = streamed.train
    if isinstance(part, torch_data.DataLoader):
        return batch_of(first_of(part, streamed.name), streamed.name)
    return batch_of(torch_data.default_collate([part[i] for i in range(size)]), streamed.name)


def _parts(loader: Any, streamed: Streamed, device: str) -> Iterator[tuple[Batch, int]]:
    for batch in loader:
        inputs, targets = batch_of(batch, streamed.name)
        own = group.local_slice(len(targets))
        yield (inputs[own].to(device, non_blocking=True), targets[own].to(device, non_blocking=True)), len(targets)


def _count(loader: Any, name: str, max_batches: int | None) -> int:
    try:
        count = length(loader, name)
    except RowError as error:  # an IterableDataset without a length
        if max_batches is None or not isinstance(error.__cause__, TypeError):
            raise
        return max_batches
    return count if max_batches is None else min(count, max_batches)


def _loader(part: Part, size: int, workers: int, order: Any, seed: int, epoch: int) -> Any:
    return torch_data.DataLoader(
        part,  # type: ignore[arg-type]
        batch_size=size,
        sampler=order,
        num_workers=workers,
        generator=_generator(seed, epoch),
    )


def _seed_loader(loader: Any, seed: int, epoch: int) -> Any:
    """Seed the order of a user's loader, which it else draws from torch's global generator."""
    for holder in (loader, loader.sampler):
        if hasattr(holder, "generator"):
            holder.generator = _generator(seed, epoch)
    if hasattr(loader.sampler, "set_epoch"):
        loader.sampler.set_epoch(epoch)
    return loader


def _generator(seed: int, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed("stream", seed, epoch))
