"""Parameters and losses that are spread over processes.

A sharded parameter (a DTensor: FSDP2, tensor parallel) is moved as the local tensor of this process; only sums over the
model have to cross processes, and they do so here. Replicated data is counted once.
"""

from __future__ import annotations

import gc
import traceback
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter

Layout = tuple[Any, tuple[int, ...]] | None  # a device mesh and the mesh dimensions that hold different pieces

Groups = Sequence[dict[str, Any]]
DRIFT = 1e-4  # how much the parameters of replicas may differ, relatively
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


def whole_of(piece: Tensor, owner: Tensor) -> Tensor:
    """Return the whole of a tensor that is sharded as its owner is, of which this process holds a piece."""
    if not is_sharded(owner):
        return piece
    from torch.distributed.tensor import DTensor

    mesh, placements = owner.device_mesh, owner.placements  # type: ignore[attr-defined]
    sharded = DTensor.from_local(piece, mesh, placements, run_check=False, shape=owner.shape, stride=owner.stride())
    return sharded.full_tensor()


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
    """Return the mean over the processes; it is on its way until `arrived`, so that the norm overlaps with it."""
    from torch.distributed import _functional_collectives as collectives

    share = value / dist.get_world_size(group)  # a division of the sum would wait for it
    total: Tensor = collectives.all_reduce(share, "sum", dist.group.WORLD if group is None else group)  # type: ignore[arg-type]
    return total


def arrived(mean: Tensor) -> Tensor:
    """Return a mean as a plain tensor; the device waits for it here, the host does not."""
    wait = getattr(mean, "trigger_wait", None)
    plain: Tensor = mean if wait is None else wait()
    return plain


class Processes:
    """The data-parallel processes of an optimizer: the mean of their losses, while their parameters are replicas."""

    CHECKED = frozenset({1, 2, 10, 100})  # steps before which the parameters are compared

    def __init__(self, owner: str, group: dist.ProcessGroup | None) -> None:
        self._owner, self.group = owner, group
        self._steps = [0, 0]  # without and with the norm of the whole gradient
        self._joinables: list[weakref.ref[Any]] | None = None
        self._is_shard = dist.is_available() and dist.is_initialized() and is_shard_of_zero()

    def mean(self, value: Tensor, groups: Groups, constraint: Any, grad_sq_norm: Any) -> Tensor:
        """Return the mean loss; processes that are given the norm of the whole gradient may hold other parameters."""
        if dist.get_world_size(self.group) == 1:
            return value
        if not torch.compiler.is_compiling():
            self._refuse_join(groups)
            given = grad_sq_norm is not None
            if self._is_shard and not given:
                raise RuntimeError(f"{self._owner}: {DIFFERENT}")
            step = self._steps[given] + 1
            if step in self.CHECKED and not _is_capturing():
                constraints = (constraint, *(group.get("constraint") for group in groups)) if given else None
                check_replicas(self._owner, groups, self.group, step == 1, constraints)
            self._steps[given] = step
        return self.average(value)

    def average(self, value: Tensor) -> Tensor:
        """Return the mean of a number, without looking at the parameters."""
        return value if dist.get_world_size(self.group) == 1 else mean(value, self.group)

    def gather(self, values: Tensor) -> Tensor:
        """Return the values of all processes, of which each has equally many."""
        from torch.distributed import _functional_collectives as collectives

        if dist.get_world_size(self.group) == 1:
            return values
        return collectives.all_gather_tensor(values, 0, dist.group.WORLD if self.group is None else self.group)  # type: ignore[arg-type]

    def compare_again(self) -> None:
        """Compare the parameters before the next step."""
        self._steps = [0, 0]

    def _refuse_join(self, groups: Groups) -> None:
        """Raise RuntimeError inside ddp.join(): a process without data would not answer when the loss is averaged."""
        if self._joinables is None:
            self._joinables = [*map(weakref.ref, _joinables_of(groups))]
        if any(found is not None and found._join_config.enable for found in (ref() for ref in self._joinables)):
            raise RuntimeError(
                f"{self._owner}: step() averages the loss over all processes, but inside join() those that have run "
                "out of data do not answer: leave join() out and give every process equally many batches."
            )


def check_replicas(
    owner: str, groups: Groups, process_group: dist.ProcessGroup | None, first: bool, constraints: Iterable[Any] | None
) -> None:
    """Raise RuntimeError unless all processes hold the same parameter groups, with nearly the same numbers in them.

    Processes that are given the norm, and so give their `constraints`, may hold different parameters unless one of
    the constraints needs them all.
    """
    mine = [[_described(p, with_sum=not first) for p in group["params"]] for group in groups]
    names = [type(each).__name__ for each in constraints or () if needs_whole(each)]
    everyone: list[Any] = [None] * dist.get_world_size(process_group)
    dist.all_gather_object(everyone, (mine, names), group=process_group)
    held, named = [params for params, _ in everyone], [name for _, names in everyone for name in names]
    differ = any(repr(other) != repr(mine) if first else _have_drifted(other, held[0]) for other in held)
    if differ and constraints is None:
        raise RuntimeError(f"{owner}: {DIFFERENT if first else DRIFTED}")
    if differ and named:
        raise RuntimeError(f"{owner}: {named[0]} {PIECES}")


DIFFERENT = (
    "the processes hold different parameters, so none of them knows the norm of the whole gradient: build the same "
    "groups everywhere, write step(loss=loss, grad_sq_norm=n) with n = ‖g‖² over all of them, or sync_loss=False for a "
    "model per process."
)
DRIFTED = (
    "the replicas have drifted apart, so the mean of their losses belongs to none of them: average the gradients with "
    "DDP or FSDP, or write sync_loss=False if every process trains a model of its own."
)
PIECES = (
    "holds for all parameters together, but each process holds a part of them and would project it by itself: take a "
    "constraint on single coordinates such as polyak.Box, or shard the model with FSDP2."
)


def needs_whole(constraint: Any) -> bool:
    """Return whether a constraint must not be applied to pieces of the parameters."""
    return constraint is not None and not getattr(constraint, "coordinatewise", False)


def is_shard_of_zero() -> bool:
    """Return whether a ZeroRedundancyOptimizer of several processes is building an optimizer for its shard."""
    for frame, _ in traceback.walk_stack(None):
        if frame.f_globals.get("__name__") == "torch.distributed.optim.zero_redundancy_optimizer":
            return bool(getattr(frame.f_locals.get("self"), "world_size", 1) > 1)
    return False


def _described(p: Tensor, with_sum: bool) -> tuple[tuple[int, ...], list[Any]]:
    """Return a parameter's shape and, of a replicated one, three numbers: pieces of equal shape are no replicas.

    The sum of all is another, which tells of drift anywhere; it may be rounded otherwise on another machine.
    """
    if is_sharded(p) or p.is_meta or not p.numel() or p.layout != torch.strided:
        return tuple(p.shape), []
    flat = p.detach().reshape(-1)
    numbers = [flat[index].item() for index in (0, len(flat) // 2, -1)]
    return tuple(p.shape), [*numbers, _sum(flat)] if with_sum else numbers


def _sum(flat: Tensor) -> Any:
    narrow = flat.is_floating_point() and flat.dtype.itemsize < 4
    return flat.sum(dtype=torch.float32 if narrow else None).item()


def _have_drifted(one: Any, other: Any) -> bool:
    """Return whether the shapes of two processes differ, or the numbers by more than rounding explains."""
    shapes = [[[shape for shape, _ in group] for group in side] for side in (one, other)]
    first, second = ([x for group in side for _, numbers in group for x in numbers] for side in (one, other))
    if shapes[0] != shapes[1]:
        return True
    return bool(sum(abs(a - b) for a, b in zip(first, second, strict=True)) > DRIFT * sum(map(abs, second)))


def _joinables_of(groups: Groups) -> list[Any]:
    """Return the modules and optimizers on which join() acts and which hold the parameters; nothing leads to them."""
    from torch.distributed.algorithms.join import Joinable

    mine, living = {id(p) for group in groups for p in group["params"]}, gc.get_objects()
    kinds = {kind for kind in {*map(type, living)} if Joinable in getattr(kind, "__mro__", ())}
    found = [each for each in living if type(each) in kinds]
    return [each for each in found if not mine.isdisjoint(map(id, _parameters_of(each)))]


def _parameters_of(joinable: Any) -> Iterable[Tensor]:
    if isinstance(joinable, torch.nn.Module):
        return joinable.parameters()
    return (p for group in getattr(joinable, "param_groups", ()) for p in group["params"])


def _is_capturing() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def _layout(tensor: Tensor) -> Layout:
    if not is_sharded(tensor):
        return None
    mesh, placements = tensor.device_mesh, tensor.placements  # type: ignore[attr-defined]
    return mesh, tuple(dim for dim, placement in enumerate(placements) if not placement.is_replicate())
