"""The process group: several processes train one run, each on its part of every batch.

All ranks make the same decisions from the same seeds. Only rank 0 writes files and prints; its
results and errors are broadcast to the others. With one process every function here is the
identity.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from polyak_lab.errors import LabError, RowError
from polyak_lab.processes import torchrun

T = TypeVar("T")

# Buffers are synchronised after an epoch, not in every step; torch 2.13 renamed the argument.
_SYNC_BUFFERS = "forward_sync_buffers"
if _SYNC_BUFFERS not in inspect.signature(DistributedDataParallel).parameters:
    _SYNC_BUFFERS = "broadcast_buffers"


@contextmanager
def process_group() -> Iterator[None]:
    """Create the process group if torchrun started several processes, and destroy it at the end.

    Raises:
        LabError: The connection to another process is lost.
    """
    if torchrun.world_size() == 1:
        yield
        return
    _init()
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, LabError) or not is_lost_connection(error):
            raise
        raise LabError(
            "Another process of this run has ended: run the same command again to resume from the checkpoint."
        ) from error
    dist.destroy_process_group()


def _init() -> None:
    if torchrun.local_rank() < torch.cuda.device_count():
        torch.cuda.set_device(torchrun.local_rank())  # "cuda" is a different GPU in each process
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")


def is_lost_connection(error: RuntimeError) -> bool:
    """Tell whether an error says that another process has ended."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def world_size() -> int:
    """Return the number of processes in the group."""
    return dist.get_world_size() if _is_initialized() else 1


def rank() -> int:
    """Return the rank of this process."""
    return dist.get_rank() if _is_initialized() else 0


def _is_initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


def on_rank_zero(call: Callable[[], T]) -> T:
    """Call a function on rank 0; all ranks return its result or raise its LabError."""
    if world_size() == 1:
        return call()
    received: list[Any] = [_outcome(call) if rank() == 0 else None]
    dist.broadcast_object_list(received)
    outcome: tuple[T | None, LabError | None] = received[0]
    return _result(outcome)


def on_all_ranks(call: Callable[[], T]) -> T:
    """Call a function on every rank; if it raises a LabError on one of them, all ranks raise it."""
    if world_size() == 1:
        return call()
    value, error = _outcome(call)
    errors: list[Any] = [None] * world_size()
    dist.all_gather_object(errors, error)
    return _result((value, next((error for error in errors if error is not None), None)))


def gather(value: T) -> list[T]:
    """Return the values of all ranks."""
    values = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values


def _outcome(call: Callable[[], T]) -> tuple[T | None, LabError | None]:
    try:
        return call(), None
    except RowError as error:
        return None, RowError(str(error), error.details)
    except LabError as error:
        return None, LabError(str(error))


def _result(outcome: tuple[T | None, LabError | None]) -> T:
    value, error = outcome
    if error is not None:
        raise error
    return cast(T, value)


def local_slice(samples: int) -> slice:
    """Return this rank's part of a batch; the parts differ by at most one sample."""
    return slice(*_local_bounds(samples))


def _local_bounds(samples: int) -> tuple[int, int]:
    size, rest = divmod(samples, world_size())
    start = rank() * size + min(rank(), rest)
    return start, start + size + (rank() < rest)


def loss_weight(samples: int) -> float:
    """Return the weight of this rank's mean loss in the mean loss of the batch."""
    start, stop = _local_bounds(samples)
    return (stop - start) * world_size() / samples


def all_reduce_sum(value: float) -> float:
    """Add up a number over the ranks."""
    if world_size() == 1:
        return value
    total = torch.tensor([value], dtype=torch.float64)
    dist.all_reduce(total)
    return float(total)


def mean_over_ranks(loss: Tensor) -> Tensor:
    """Return the mean of a loss over the ranks, which optimizers of other packages do not compute."""
    if world_size() == 1:
        return loss
    mean = loss.detach().clone()
    dist.all_reduce(mean)
    return mean / world_size()


def sync_batch_norm(model: nn.Module, device: str) -> nn.Module:
    """Compute the statistics of batch norm over all ranks; torch supports this on GPUs only."""
    if world_size() == 1 or not device.startswith("cuda"):
        return model
    return cast(nn.Module, nn.SyncBatchNorm.convert_sync_batchnorm(model))


def data_parallel(network: nn.Module) -> nn.Module:
    """Wrap a network so that backward averages the gradients over the ranks."""
    if world_size() == 1:
        return network
    options: dict[str, Any] = {_SYNC_BUFFERS: False}
    return DistributedDataParallel(network, **options)


def broadcast_buffers(model: nn.Module) -> None:
    """Copy the buffers of rank 0, such as the running statistics of batch norm, to all ranks."""
    if world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def check_device(name: str) -> None:
    """Refuse a device that is not available once per process of this machine."""
    if world_size() == 1 or not name.startswith("cuda"):
        return
    if ":" in name:
        raise LabError(
            f"The device {name!r} is one GPU, but there are {world_size()} processes: "
            "write cuda, which gives each its own GPU."
        )
    if torchrun.local_world_size() > torch.cuda.device_count():
        raise LabError(
            f"This machine has {torch.cuda.device_count()} GPUs for {torchrun.local_world_size()} processes: "
            "start at most one process per GPU, or write cpu."
        )
