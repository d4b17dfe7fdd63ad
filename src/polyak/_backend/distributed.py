"""Parameters and losses that are spread over processes.

A sharded parameter (a DTensor: FSDP2, tensor parallel) is moved as the local tensor of this process; only sums over the
model have to cross processes, and they do so here. Replicated data is counted once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter

Layout = tuple[Any, tuple[int, ...]] | None  # a device mesh and the mesh dimensions that hold different pieces

PLAIN = frozenset({Tensor, Parameter})


def send(tensor: Tensor, like: Tensor) -> Tensor:
    """Return the tensor on another's device; the host waits only if the data comes to the host."""
    device = like.device
    return tensor if tensor.device == device else tensor.to(device, non_blocking=device.type != "cpu")


def is_sharded(tensor: Tensor) -> bool:
    """Return whether the tensor is a DTensor; asks no module, so that a plain import stays light."""
    return type(tensor) not in PLAIN and getattr(tensor, "device_mesh", None) is not None


def any_sharded(tensors: Sequence[Tensor]) -> bool:
    """Return whether one of the tensors is a DTensor."""
    return not {*map(type, tensors)} <= PLAIN and any(map(is_sharded, tensors))


def local(tensor: Tensor) -> Tensor:
    """Return the piece of a tensor that this process holds."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def full(tensor: Tensor) -> Tensor:
    """Return the whole tensor on every process."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def aligned(grad: Tensor, p: Tensor) -> Tensor:
    """Return the gradient in the layout of its parameter; tensor parallel may leave it as partial sums."""
    if type(grad) not in PLAIN and is_sharded(grad) and grad.placements != p.placements:  # type: ignore[attr-defined]
        return grad.redistribute(placements=p.placements)  # type: ignore[attr-defined, no-any-return]
    return grad


def piece_of(whole: Tensor, owner: Tensor) -> Tensor:
    """Cut this process's piece out of a tensor that every process holds whole; nothing is sent."""
    if not is_sharded(owner):
        return send(whole, owner)
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = owner.device_mesh, owner.placements  # type: ignore[attr-defined]
    return distribute_tensor(send(whole, owner), mesh, placements, src_data_rank=None).to_local()


def by_layout(owners: Sequence[Tensor], rows: Iterable[Any]) -> dict[Layout, list[Any]]:
    """Sort rows by how their owners are spread."""
    kinds: dict[Layout, list[Any]] = {}
    for owner, row in zip(owners, rows, strict=True):
        kinds.setdefault(_layout(owner), []).append(row)
    return kinds


def total(part: Tensor, layout: Layout) -> Tensor:
    """Add up the parts of a sum that the processes of a layout hold."""
    if layout is None:
        return part
    from torch.distributed import _functional_collectives as collectives

    mesh, dims = layout
    for dim in dims:
        part = collectives.all_reduce(part, "sum", (mesh, dim))
    return part


def mean(value: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Return the mean over the processes; it is on its way until the first use, so that the norm overlaps with it."""
    if not spans_processes(group):
        return value
    from torch.distributed import _functional_collectives as collectives

    total: Tensor = collectives.all_reduce(value, "sum", dist.group.WORLD if group is None else group)  # type: ignore[arg-type]
    return total / dist.get_world_size(group)


def spans_processes(group: dist.ProcessGroup | None) -> bool:
    """Return whether there is more than one process to agree with."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1


def check_agreement(owner: str, groups: Sequence[dict[str, Any]], process_group: dist.ProcessGroup | None) -> None:
    """Raise RuntimeError unless all processes hold the same parameter groups, with the same numbers in them."""
    mine = [[_described(p) for p in group["params"]] for group in groups]
    everyone: list[Any] = [None] * dist.get_world_size(process_group)
    dist.all_gather_object(everyone, mine, group=process_group)
    if any(other != mine for other in everyone):
        raise RuntimeError(
            f"{owner}: the processes hold different parameters, so none of them knows the norm of the whole gradient: "
            "build the same groups everywhere, or write step(loss=loss, grad_sq_norm=n) with n = ‖g‖² over all of them."
        )


def _described(p: Tensor) -> tuple[tuple[int, ...], str]:
    """Return a parameter's shape and, of a replicated one, three numbers: pieces of equal shape are no replicas."""
    if is_sharded(p) or p.is_meta or not p.numel():
        return tuple(p.shape), ""
    flat = p.detach().reshape(-1)
    return tuple(p.shape), repr([flat[index].item() for index in (0, len(flat) // 2, -1)])


def _layout(tensor: Tensor) -> Layout:
    if not is_sharded(tensor):
        return None
    mesh, placements = tensor.device_mesh, tensor.placements  # type: ignore[attr-defined]
    return mesh, tuple(dim for dim, placement in enumerate(placements) if not placement.is_replicate())
