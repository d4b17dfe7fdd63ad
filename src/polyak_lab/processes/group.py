"""Several processes that train one run together, each on its share of every batch.

All of them make the same choices from the same seeds. The first one reads and writes files and speaks; what it finds,
or what stops it, the others hear. With one process every function here gives back what it was given.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from polyak_lab.errors import LabError
from polyak_lab.processes import torchrun as launched

T = TypeVar("T")

# Running statistics are read after an epoch, not in every step; torch 2.13 has given the switch a new name.
_BUFFERS = "forward_sync_buffers"
if _BUFFERS not in inspect.signature(DistributedDataParallel).parameters:
    _BUFFERS = "broadcast_buffers"


@contextmanager
def joined() -> Iterator[None]:
    """Meet the other processes that torchrun started, and part from them when the work is done."""
    if launched.size() == 1:
        yield
        return
    _meet()
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, LabError) or not _is_lost_connection(error):
            raise
        raise LabError("Another process of this run is gone; the same command goes on from the checkpoint.") from error
    dist.destroy_process_group()


def _meet() -> None:
    if launched.local_rank() < torch.cuda.device_count():
        torch.cuda.set_device(launched.local_rank())  # so that "cuda" means another GPU in every process
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")


def _is_lost_connection(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def size() -> int:
    """Count the processes that train together."""
    return dist.get_world_size() if _are_several() else 1


def rank() -> int:
    """Name this process; the first one is 0."""
    return dist.get_rank() if _are_several() else 0


def _are_several() -> bool:
    return dist.is_available() and dist.is_initialized()


def from_first(call: Callable[[], T]) -> T:
    """Let the first process do something; all get what it returned, or the error that it raised."""
    if size() == 1:
        return call()
    heard: list[Any] = [_outcome(call) if rank() == 0 else None]
    dist.broadcast_object_list(heard)
    outcome: tuple[T | None, str | None] = heard[0]
    return _unpacked(outcome)


def together(call: Callable[[], T]) -> T:
    """Let every process do something; if one cannot, none goes on."""
    if size() == 1:
        return call()
    own = _outcome(call)
    errors: list[Any] = [None] * size()
    dist.all_gather_object(errors, own[1])
    return _unpacked((own[0], next((error for error in errors if error is not None), None)))


def _outcome(call: Callable[[], T]) -> tuple[T | None, str | None]:
    try:
        return call(), None
    except LabError as error:
        return None, str(error)


def _unpacked(outcome: tuple[T | None, str | None]) -> T:
    value, error = outcome
    if error is not None:
        raise LabError(error)
    return cast(T, value)


def share(samples: int) -> slice:
    """Cut this process's part out of so many samples; parts differ by one sample at most, the larger ones first."""
    return slice(*_bounds(samples))


def _bounds(samples: int) -> tuple[int, int]:
    part, left = divmod(samples, size())
    start = rank() * part + min(rank(), left)
    return start, start + part + (rank() < left)


def weight(samples: int) -> float:
    """Weigh the mean loss of this process's share, so that the plain mean over processes is the mean of all samples."""
    start, stop = _bounds(samples)
    return (stop - start) * size() / samples


def total(value: float) -> float:
    """Add up a number over the processes."""
    if size() == 1:
        return value
    numbers = torch.tensor([value], dtype=torch.float64)
    dist.all_reduce(numbers)
    return float(numbers)


def with_shared_statistics(model: nn.Module, device: str) -> nn.Module:
    """Let batch norm see the whole batch where torch can: on GPUs."""
    if size() == 1 or not device.startswith("cuda"):
        return model
    return cast(nn.Module, nn.SyncBatchNorm.convert_sync_batchnorm(model))


def replica(network: nn.Module) -> nn.Module:
    """Wrap a network so that backward averages the gradients over the processes."""
    if size() == 1:
        return network
    options: dict[str, Any] = {_BUFFERS: False}
    return DistributedDataParallel(network, **options)


def send_buffers(model: nn.Module) -> None:
    """Give every process the running statistics of the first one."""
    if size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def check_device(name: str) -> None:
    """Refuse a device that the processes of this machine cannot each have one of."""
    if size() == 1 or not name.startswith("cuda"):
        return
    if ":" in name:
        raise LabError(f"The device {name!r} is one GPU for {size()} processes: write cuda, and each takes its own.")
    if launched.size_here() > torch.cuda.device_count():
        raise LabError(
            f"{launched.size_here()} processes share this machine, but it has {torch.cuda.device_count()} GPUs: "
            "start at most one process for each, or write cpu."
        )
