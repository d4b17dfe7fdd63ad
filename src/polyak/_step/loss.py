"""The three ways to give a step its loss: `loss=`, a closure, and a watched loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, islice
from numbers import Rational, Real
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.compiler import is_compiling

from .._backend.chunks import INTERPRETED
from .._backend.distributed import PLAIN, arrived, full, is_initialized
from .._backend.moves import Form
from .._backend.scalars import LARGEST, Scalar, as_tensor
from .._backend.vector import add_, add_up, assign_, cast, dots
from .advice import line_to_write
from .parts import Part, gather
from .torch_hooks import Leaves, Replay

Groups = Sequence[Mapping[str, Any]]
Indices = Tensor | Sequence[int] | int


class WatchedLoss:
    """The value of the objective whose gradient backward is accumulating: Σ ∂objective/∂loss · loss.

    The hook on the loss runs inside backward, so every division for accumulation is in it, whoever made it. A pass
    counts once it has ended: one that raises an error, such as out of memory, leaves nothing behind. Gradients
    that came and are gone without a step (a GradScaler skipped it, then the loop called model.zero_grad()) take the
    value with them. A pass that does not reach the parameters, such as autograd.grad for a penalty or the loss of
    another optimizer, counts only if no pass does: a loop may set the gradients that autograd.grad returns.
    """

    def __init__(self) -> None:
        self._reached: Tensor | None = None  # the sum over the passes that reach the parameters
        self._others: Tensor | None = None
        self._running: dict[int, list[tuple[Tensor, list[Tensor], list[Any]]]] = {}  # by the pass, not ended yet
        self._leaves = Leaves()
        self.replay = Replay()
        self.samples: Any = None  # the losses and the indices of a batch
        self._landed = False  # whether a gradient of the value has been there; a sharded one may come late

    def watch(self, loss: Tensor, groups: Groups, scaler: Any = None) -> Tensor:
        """Hook the loss, unless it or what it is a multiple of has been hooked; the same tensor is returned."""
        if not isinstance(loss, Tensor):
            raise TypeError(f"watch() takes the loss tensor before backward, but a {type(loss).__name__} was given.")
        check_single(loss)
        if not loss.requires_grad:
            return loss
        nodes = [] if is_compiling() or loss.grad_fn is None else [*_multiplied(loss)]
        for node, key in nodes:
            if known := node.metadata.get((self, key)):
                known[:] = [known[0] or scaler]
                return loss
        value, scalers = _wide(loss).clone(), [scaler]  # a copy, since the loop may divide the loss in place
        for node, key in nodes[:1]:
            node.metadata[self, key] = scalers
        loss.register_hook(lambda grad: self._add(_wide(grad) * value, groups, scalers[0]))
        return loss

    def _add(self, part: Tensor, groups: Groups, scaler: Any) -> None:
        if self._landed and not _any_gradient(groups):
            self._reached, self._others, self._landed = None, None, False
        if scaler is not None:  # scale() of a one is the current scale, still on the device
            part = part / scaler.scale(torch.ones_like(part))
        if is_compiling():  # compiled autograd has no callbacks
            self._count(part, is_reached=True)
            return
        task, queue = torch._C._current_graph_task_id(), torch.autograd.Variable._execution_engine.queue_callback
        leaves = self._leaves.of([p for group in groups for p in group["params"] if p.requires_grad and p.is_leaf])
        reached = [*islice(filter(_is_executed, leaves), 1)]
        handles = [] if reached else [p.register_post_accumulate_grad_hook(reached.append) for p in leaves]
        self._running.setdefault(task, []).append((part, reached, handles))
        queue(lambda: queue(lambda: self._end(task, groups)))  # after the callback in which FSDP2 sets p.grad

    def _end(self, task: int, groups: Groups) -> None:
        """Count the losses of a pass: checkpoints with use_reentrant=True compute gradients in passes of their own."""
        for part, reached, handles in self._running.pop(task, ()):
            for handle in handles:
                handle.remove()
            self._count(part, is_reached=bool(reached))
        self._landed = _any_gradient(groups)

    def _count(self, part: Tensor, is_reached: bool) -> None:
        if is_reached:
            self._reached = part if self._reached is None else self._reached + part
        else:
            self._others = part if self._others is None else self._others + part

    def take(self) -> Tensor | None:
        """Return the value and forget it; inside backward, with what this pass has added so far."""
        if self._running and not is_compiling():
            self._end(torch._C._current_graph_task_id(), ())
            for _, _, handles in chain.from_iterable(self._running.values()):  # of passes that raised an error
                for handle in handles:
                    handle.remove()
            self._running.clear()
        value = self._others if self._reached is None else self._reached
        self._reached, self._others, self._landed = None, None, False
        return value


SCALINGS = frozenset({"MulBackward0", "DivBackward0", "ToCopyBackward0", "CloneBackward0", "AliasBackward0"})


def _multiplied(loss: Tensor) -> Iterator[tuple[Any, int]]:
    """Yield the outputs of nodes of which a loss is a multiple: its own, and those before factors without gradient."""
    node, key = loss.grad_fn, loss.output_nr
    while node is not None:
        yield node, key
        inputs = [each for each in node.next_functions if each[0] is not None] if node.name() in SCALINGS else []
        node, key = inputs[0] if len(inputs) == 1 else (None, 0)


def _is_executed(p: Tensor) -> bool:
    try:
        return torch._C._will_engine_execute_node(get_gradient_edge(p).node)
    except RuntimeError:  # autograd.grad returns this gradient instead of accumulating it
        return False


def refuse_inside_backward(owner: str) -> NoReturn:
    """Raise RuntimeError where a hook of backward calls step() without the norm of the whole gradient."""
    raise RuntimeError(
        f"{owner}.step() cannot run inside backward: a Polyak step divides the loss by the norm of the whole "
        "gradient, which is known only after the last parameter's hook. Call step() after backward instead."
    )


def _any_gradient(groups: Groups) -> bool:
    return any(p.grad is not None for group in groups for p in group["params"])


def _wide(number: Tensor) -> Tensor:
    return number.detach() if number.dtype == torch.float64 else number.detach().float()


def read_loss(
    self: Any, closure: Callable[[], Any] | None, loss: Tensor | float | None, indices: Indices | None = None
) -> Tensor | float | None:
    """Return the loss that was given, returned by the closure or watched; None if there is none."""
    if indices is not None:
        raise TypeError(f"{type(self).__name__}.step() takes no indices: ALIGPlus alone has targets for samples.")
    watched: WatchedLoss = self._watched
    if closure is not None and loss is not None:
        raise TypeError("step() was given both a closure and loss=: give one of them.")
    if closure is not None and not callable(closure):
        raise TypeError(
            f"step() takes a callable as closure, but a {type(closure).__name__} was given: write step(loss=loss)."
        )
    if closure is not None:
        with torch.enable_grad():
            loss = closure()
        seen = watched.take()  # a watched loss is exact under accumulation, a framework's return value may not be
        return loss if seen is None else seen
    seen = watched.take()
    return seen if loss is None else loss


def read_first(
    self: Any, closure: Callable[[], Any] | None, loss: Tensor | float | None, indices: Indices | None = None
) -> Tensor | float | None:
    """Return the loss from a closure that the step evaluates again; the loss cannot be given otherwise."""
    owner, groups = type(self).__name__, self.param_groups
    if (closure is None and loss is not None) or not (closure is None or callable(closure)):
        raise TypeError(f"{owner}.step() evaluates the loss twice, so a value is not enough: {CLOSURE}.")
    if closure is not None:
        self._watched.replay.start(closure, [p for group in groups for p in group["params"]])
    value = read_loss(self, closure, loss, indices)
    if value is None or closure is None:
        refuse_without_loss(owner, groups, CLOSURE)
        return None
    return value


def read_again(self: Any, parts: list[Part], lengths: Sequence[Scalar]) -> tuple[Tensor, Scalar]:
    """Return the loss at e = x + a·g, where every part has its a, and ⟨∇f(e), e − x⟩; x is restored in any case.

    The parts then have the gradients at e.
    """
    like, before = parts[0].group["step_size"], [(p, p.grad, _version(p)) for part in parts for p in part.params]
    points = [[tensor.clone() for tensor in part.x] for part in parts]
    try:
        with self._watched.replay.again() as closure:
            for part, a in zip(parts, lengths, strict=True):
                add_(part.x, part.g, a, foreach=part.group["foreach"])
            value = as_scalar(read_loss(self, closure, None), like)
        if all(p.grad is grad and _version(p) == version for p, grad, version in before):
            raise RuntimeError(f"{type(self).__name__}: the closure computed no gradient: {CLOSURE}.")
        for part, point in zip(parts, points, strict=True):
            add_(part.x, point, -1.0, foreach=part.group["foreach"])
        moved = [gather({**part.group, "params": part.params}, self.state, (), Form.PLAIN) for part in parts]
        climb = add_up(dots(moved, [part.g for part in moved], [part.x for part in moved]), like)
    finally:
        for part, point in zip(parts, points, strict=True):
            assign_(part.x, point)
    for i, part in enumerate(parts):
        parts[i] = gather(part.group, self.state, self.buffers(part.group), part.form)
    if self._sync_loss and is_initialized():
        value = arrived(self._processes.average(value))
    return value, climb


def _version(p: Tensor) -> int:
    """Return a number that grows when the gradient of a parameter is written."""
    return -1 if p.grad is None else p.grad._version


def as_norm(number: object, like: Tensor) -> Tensor:
    """Return a given ‖g‖² as such a tensor."""
    return as_scalar(number, like, "grad_sq_norm")


def as_scalar(number: Any, like: Tensor, name: str = "loss") -> Tensor:
    """Return a number as a new detached 0-dim tensor of the optimizer's scalar type, without waiting for the device."""
    if isinstance(number, Tensor):
        if type(number) not in PLAIN:
            number = full(number)
        if number.numel() != 1 or number.is_complex() or number.layout is not torch.strided:
            check_single(number, name)
        if number.is_meta and not like.is_meta:
            refuse_meta(name)
        if number.dtype == like.dtype and number.is_cpu and like.is_cpu and not (INTERPRETED or is_compiling()):
            return torch.scalar_tensor(number.item(), dtype=like.dtype, device="cpu")  # faster than a clone
        new = number.clone() if number.dim() == 0 else number.reshape(()).clone()
        return new if new.dtype == like.dtype and new.device == like.device else cast(new, like)
    if isinstance(number, Real):
        large = isinstance(number, Rational) and abs(number) > LARGEST[torch.float64]  # type: ignore[operator]
        return as_tensor((math.inf if number > 0 else -math.inf) if large else float(number), like)  # type: ignore[operator]
    given = type(number).__name__
    raise TypeError(f"The {name} must be a tensor with one element or a number, but a {given} was given.")


def refuse_meta(name: str) -> NoReturn:
    """Raise ValueError for a tensor that has no value although the parameters have."""
    raise ValueError(f"The {name} must be a number, but lies on the meta device, where it has no value.")


ONE_NUMBER = {
    "loss": "take the mean, call backward on that, and pass that very value",
    "lower_bound": "pass the mean of the samples' bounds",
    "grad_sq_norm": "pass the sum",
}


def check_single(number: Tensor, name: str = "loss") -> None:
    """Raise unless a tensor is one real number."""
    if number.numel() != 1:
        raise ValueError(
            f"The {name} must have one element, but its shape is {tuple(number.shape)}: {ONE_NUMBER[name]}."
        )
    if number.is_complex():
        raise TypeError(f"The {name} must be real, but it is complex: pass its .real or .abs().")
    if number.layout is not torch.strided:
        raise TypeError(f"The {name} must be dense, but it is sparse: pass its .to_dense().")


CLOSURE = (
    "write optimizer.step(closure) with a closure that calls zero_grad(), computes the loss, calls backward() on it "
    "and returns it"
)


def refuse_without_loss(owner: str, groups: Groups, instead: str | None = None) -> None:
    """Raise RuntimeError if there is a gradient to follow; distributed checkpointing calls so with every lr at 0."""
    if _any_gradient(groups) and any(group["lr"] != 0 for group in groups):
        raise RuntimeError(f"{owner}.step() needs the loss: {instead or line_to_write()}.")
