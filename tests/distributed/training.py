"""One small training run, in one process or spread over several: the same seeds, the same global batches."""

from __future__ import annotations

import datetime
import functools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

import polyak
from problem import take_step

STEPS, BATCH, INPUTS, CLASSES = 20, 8, 7, 5
Wrap = Callable[[nn.Sequential], tuple[nn.Module, int, int]]  # the model, this rank's share of the batch, of how many


def join(rank: int, world: int, folder: Path) -> None:
    """Meet the other ranks in a file; a rank that waits for another gives up after a minute."""
    torch.set_num_threads(1)
    store = f"file://{folder / 'store'}"
    wait = datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world, timeout=wait)


def leave() -> None:
    """Part from the other ranks and end the process at once.

    A device mesh keeps gloo's threads beyond destroy_process_group(), and if they are still there when the interpreter
    goes, torch sometimes aborts with "terminate called without an active exception" (pytorch/pytorch#190489).
    """
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)


def network() -> nn.Sequential:
    """Return the same network on every rank; its first layer does not divide evenly by 2 or 4."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(INPUTS, 16), nn.Tanh(), nn.Linear(16, CLASSES))


def batches(first: int = 0, last: int = STEPS) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the global batches."""
    draw = torch.Generator().manual_seed(1)
    inputs = torch.randn(STEPS, BATCH, INPUTS, generator=draw)
    targets = torch.randint(CLASSES, (STEPS, BATCH), generator=draw)
    yield from zip(inputs[first:last], targets[first:last], strict=True)


@functools.cache  # each new mesh starts groups of its own, whose threads stay until the process ends
def line() -> DeviceMesh:
    """Return all ranks in a line."""
    return init_device_mesh("cpu", (dist.get_world_size(),))


@functools.cache
def pairs() -> DeviceMesh:
    """Return the ranks as pairs: the data are divided over the pairs, the layers within each."""
    return init_device_mesh("cpu", (dist.get_world_size() // 2, 2), mesh_dim_names=("data", "tensor"))


def alone(model: nn.Sequential) -> tuple[nn.Module, int, int]:
    """Leave the model as it is."""
    return model, 0, 1


def replicated(model: nn.Sequential) -> tuple[nn.Module, int, int]:
    """DDP: every rank holds the whole model."""
    return DistributedDataParallel(model), dist.get_rank(), dist.get_world_size()


def sharded(model: nn.Sequential) -> tuple[nn.Module, int, int]:
    """FSDP2: every rank holds a piece of every tensor."""
    for part in (model[0], model[2], model):
        fully_shard(part, mesh=line())
    return model, dist.get_rank(), dist.get_world_size()


def partly_sharded(model: nn.Sequential) -> tuple[nn.Module, int, int]:
    """FSDP2 on the last layer alone: plain and sharded parameters in one model, as many pieces as ranks."""
    fully_shard(model[2], mesh=line())
    for p in model[0].parameters():
        p.register_post_accumulate_grad_hook(_average)
    return model, dist.get_rank(), dist.get_world_size()


def two_dimensional(model: nn.Sequential) -> tuple[nn.Module, int, int]:
    """FSDP2 over pairs of ranks that share each layer by tensor parallelism."""
    mesh = pairs()
    parallelize_module(model, mesh["tensor"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
    fully_shard(model, mesh=mesh["data"])
    return model, mesh["data"].get_local_rank(), mesh["data"].size()


def _average(p: Tensor) -> None:
    dist.all_reduce(p.grad)
    p.grad /= dist.get_world_size()


def train(
    wrap: Wrap, build: Callable[[Any], polyak.PolyakOptimizer], scaler: torch.amp.GradScaler | None = None
) -> tuple[list[Tensor], polyak.PolyakOptimizer]:
    """Train the network for 20 steps; return its whole parameters, in order."""
    model, share, shares = wrap(network())
    optimizer = build(model.parameters())
    advance(model, optimizer, share, shares, scaler=scaler)
    return whole(model), optimizer


def advance(
    model: nn.Module,
    optimizer: polyak.PolyakOptimizer,
    share: int,
    shares: int,
    first: int = 0,
    last: int = STEPS,
    scaler: torch.amp.GradScaler | None = None,
) -> None:
    """Make some of the steps, on this rank's share of each batch."""
    rows = slice(share * BATCH // shares, (share + 1) * BATCH // shares)
    for inputs, targets in batches(first, last):

        def closure(inputs: Tensor = inputs, targets: Tensor = targets) -> Tensor:
            loss = nn.functional.cross_entropy(model(inputs[rows]), targets[rows])
            optimizer.zero_grad()
            (loss if scaler is None else scaler.scale(loss)).backward()
            return loss

        if scaler is None:
            take_step(optimizer, closure)
        else:
            scaler.step(optimizer, loss=closure())
            scaler.update()


def whole(model: nn.Module) -> list[Tensor]:
    """Return copies of the parameters, gathered where they are sharded."""
    full = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()]
    return [p.detach().clone() for p in full]
