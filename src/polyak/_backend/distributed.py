"""Parameters and losses that are spread over processes.

A sharded parameter (a DTensor: FSDP2, tensor parallel) is moved as the local tensor of this process; only sums over the
model have to cross processes, and they do so here. Replicated data is counted once.
"""

from __future__ import annotations

import gc
import math
import traceback
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter

Layout = tuple[Any, tuple[int, ...]] | None  # a device mesh and the mesh dimensions that hold different pieces

Groups = Sequence[dict[str, Any]]
DRIFT = 1e-4  # how much the parameters of replicas may differ, relatively
PLAIN = frozenset({Tensor, Parameter})
RADIUS = "l2_ball_radius"  # the key of a group whose ball was relative: a state_dict holds the radius
is_initialized: Callable[[], bool] = getattr(dist, "is_initialized", bool)  # which a torch without processes lacks


def send(tensor: Tensor, like: Tensor) -> Tensor:
    """Return the tensor on another's device; the host waits only if the data comes to the host."""
    device = like.device
    return tensor if tensor.device == device else tensor.to(device, non_blocking=device.type != "cpu")


def is_capturing(device: torch.device) -> bool:
    """Return whether a CUDA graph is being captured."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


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


def _message(loss: Tensor, bound: Any) -> Tensor:
    """Return a loss and the bound of a call, if it has one, as a message that is alike on all processes.

    Its third number becomes NaN in the sum if some of them give a bound and others do not. The type is not that of the
    loss, which follows the parameters of one process.
    """
    given = isinstance(bound, Tensor)
    dtype = torch.float64 if loss.device.type in ("cpu", "cuda") else loss.dtype  # others may not have it
    mark = torch.full((), math.inf if given else -math.inf, dtype=dtype, device=loss.device)
    return torch.stack([loss, bound if given else loss, mark])


class Processes:
    """The data-parallel processes of an optimizer: the mean of their losses, while their parameters are replicas."""

    CHECKED = frozenset({1, 2, 10, 100})  # steps before which the parameters are compared

    def __init__(self, owner: str, group: dist.ProcessGroup | None) -> None:
        self._owner, self.group = owner, group
        self._steps = [0, 0]  # without and with the norm of the whole gradient
        self._joinables: list[weakref.ref[Any]] | None = None
        self._is_shard = is_initialized() and is_shard_of_zero()

    def mean(self, optimizer: Any, loss: Tensor, bound: Any, grad_sq_norm: Any) -> Tensor | None:
        """Send the loss and the bound of a call; `receive` takes their means. None if there is only one process.

        Processes that are given the norm of the whole gradient may hold other parameters.
        """
        if dist.get_world_size(self.group) == 1:
            return None
        if not torch.compiler.is_compiling():
            groups, given = optimizer.param_groups, grad_sq_norm is not None
            self._refuse_join(groups)
            if self._is_shard and not given:
                raise RuntimeError(f"{self._owner}: {DIFFERENT}")
            step = self._steps[given] + 1
            if step in self.CHECKED and not is_capturing(loss.device):
                constraints = (optimizer._constraint, *(group.get("constraint") for group in groups)) if given else None
                radii = check_replicas(self._owner, groups, self.group, step == 1, constraints)
                optimizer._take_radii(radii)
            self._steps[given] = step
        return self.average(_message(loss, bound))

    def receive(self, message: Tensor, like: Tensor, bound: Any) -> tuple[Tensor, Any]:
        """Return the mean loss, and the mean bound if this call has one; the device waits for them here."""
        numbers = arrived(message).to(like.dtype)
        loss, mean_bound, mark = numbers[0], numbers[1], numbers[2]
        if not mark.is_cpu or torch.compiler.is_compiling():
            loss = loss + mark.clamp(0.0, 0.0)  # NaN where the processes disagree, so that none of them moves
        elif math.isnan(mark.item()):
            raise RuntimeError(f"{self._owner}: {BOUNDS}")
        return loss, mean_bound if isinstance(bound, Tensor) else bound

    def average(self, value: Tensor) -> Tensor:
        """Return the mean of a number, without looking at the parameters."""
        return value if dist.get_world_size(self.group) == 1 else mean(value, self.group)

    def gather(self, *vectors: Tensor) -> list[Tensor]:
        """Return the vectors of all processes, each of which has one of the same length."""
        from torch.distributed import _functional_collectives as collectives

        if dist.get_world_size(self.group) == 1:
            return [*vectors]
        gather = getattr(collectives, "all_gather_single", None) or collectives.all_gather_tensor  # before torch 2.13
        group: Any = dist.group.WORLD if self.group is None else self.group
        device = vectors[0].device
        checked = device.type == "cpu" or sum(self._steps) + 1 in self.CHECKED  # a device would be waited for
        if checked and not (torch.compiler.is_compiling() or is_capturing(device)):
            lengths = gather(torch.tensor([len(vectors[0])], device=device), 0, group).tolist()
            if len({*lengths}) > 1:
                raise ValueError(f"{self._owner}: the processes have batches of {lengths} samples, {UNEQUAL}")
        return [gather(vector, 0, group) for vector in vectors]

    def compare_again(self) -> None:
        """Compare the parameters before the next step."""
        self._steps = [0, 0]

    def _refuse_join(self, groups: Groups) -> None:
        """Raise RuntimeError inside ddp.join(): a process without data would not answer when the loss is averaged."""
        if self._joinables is None:
            self._joinables = [*map(weakref.ref, _joinables_of(groups))]
        if any(each is not None and each._join_config.enable for each in (ref() for ref in self._joinables)):
            raise RuntimeError(
                f"{self._owner}: step() averages the loss over all processes, but inside join() those that have run "
                "out of data do not answer: leave join() out and give every process equally many batches."
            )


def check_replicas(
    owner: str, groups: Groups, process_group: dist.ProcessGroup | None, first: bool, constraints: Iterable[Any] | None
) -> list[Any]:
    """Raise RuntimeError unless all processes hold the same parameter groups, with nearly the same numbers in them.

    Processes that are given the norm, and so give their `constraints`, may hold different parameters unless one of
    the constraints needs them all. Return the radius of each group on rank 0, whose parameters DDP sends to all.
    """
    mine = [[_described(p, with_sum=not first) for p in group["params"]] for group in groups]
    names = [type(each).__name__ for each in constraints or () if needs_whole(each)]
    radii = [group.get(RADIUS) for group in groups]
    everyone: list[Any] = [None] * dist.get_world_size(process_group)
    dist.all_gather_object(everyone, (mine, names, radii), group=process_group)
    described, named = [each[0] for each in everyone], [name for each in everyone for name in each[1]]
    differ = any(repr(other) != repr(mine) if first else _have_drifted(other, described[0]) for other in described)
    if differ and constraints is None:
        raise RuntimeError(f"{owner}: {DIFFERENT if first else DRIFTED}")
    if differ and named:
        raise RuntimeError(f"{owner}: {named[0]} {PIECES}")
    return radii if differ else everyone[0][2]


DIFFERENT = (
    "the processes hold different parameters, so none of them knows the norm of the whole gradient: build the same "
    "groups everywhere, write step(loss=loss, grad_sq_norm=n) with n = ‖g‖² over all of them, or sync_loss=False for a "
    "model per process."
)
DRIFTED = (
    "the replicas have drifted apart, so the mean of their losses belongs to none of them: average the gradients with "
    "DDP or FSDP, or write sync_loss=False if every process trains a model of its own."
)
BOUNDS = (
    "some processes give lower_bound to step() and others do not, so the means of loss and bound are of different "
    "batches: give it on all of them or on none."
)
UNEQUAL = "but all of them need equally many: drop the last batch with DataLoader(..., drop_last=True), or pad it."
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
    instances = [each for each in living if type(each) in kinds]
    return [each for each in instances if not mine.isdisjoint(map(id, _parameters_of(each)))]


def _parameters_of(joinable: Any) -> Iterable[Tensor]:
    if isinstance(joinable, torch.nn.Module):
        return joinable.parameters()
    return (p for group in getattr(joinable, "param_groups", ()) for p in group["params"])
