"""What torch has around a step: hooks, a mark for its profiler, random states, modules' buffers, what FSDP2 gathers.

Hooks and the mark are skipped while nothing uses them.
"""

from __future__ import annotations

import functools
import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.autograd import profiler
from torch.optim import Optimizer
from torch.optim import optimizer as torchs

from .._backend.distributed import is_sharded

P = ParamSpec("P")
R = TypeVar("R")


def hook_step(func: Callable[P, R]) -> Callable[P, R]:
    """Return the step in torch's own wrapper, which is left out while it has nothing to do.

    It takes 12 µs, a fifth of a step of a small network. `torch.no_grad`, in which the step is wrapped, takes 2 µs more
    than to switch gradients off by hand.
    """
    hooked = Optimizer.profile_hook_step(func)
    unwrapped = getattr(func, "__wrapped__", None) if func.__qualname__ == "PolyakOptimizer.step" else None

    @functools.wraps(func)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        optimizer: Any = args[0]
        hooks = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
        hooks = hooks or torchs._global_optimizer_pre_hooks or torchs._global_optimizer_post_hooks
        # a profiler is assumed where torch does not say
        needed = hooks or torch.compiler.is_compiling() or getattr(profiler, "_is_profiler_enabled", True)
        if needed or unwrapped is None:
            return (hooked if needed else func)(*args, **kwargs)
        before = torch.is_grad_enabled()
        torch._C._set_grad_enabled(False)
        try:
            result: R = unwrapped(*args, **kwargs)
            return result
        finally:
            torch._C._set_grad_enabled(before)

    return wrapper


class Replay:
    """A closure that is evaluated twice: with the same random numbers, and only once with an effect on buffers.

    So both evaluations are of one function, and the running statistics of batch norm take each batch once.
    """

    def __init__(self) -> None:
        self._closure: Callable[[], Any] = list  # returns the closure while the step runs that was given it
        self._states: list[RandomState] = []
        self._ids: frozenset[int] = frozenset()
        self._modules: list[weakref.ref[torch.nn.Module]] = []

    def start(self, closure: Callable[[], Any], params: Sequence[Tensor]) -> None:
        """Note the random states before the first evaluation, and find the modules."""
        if self._ids != (ids := frozenset(map(id, params))):
            self._ids, self._modules = ids, [*map(weakref.ref, _modules_of(ids))]
        try:
            self._closure = weakref.ref(closure)  # which would keep a batch alive until the next step
        except TypeError:  # an object of a class with slots
            self._closure = lambda: closure
        self._states = [*map(RandomState, {torch.device("cpu"), *(p.device for p in params)})]

    @contextmanager
    def again(self) -> Iterator[Callable[[], Any]]:
        """Yield the closure for its second evaluation; what it changes beside the gradients is put back."""
        closure = self._closure()
        modules = [module for module in (ref() for ref in self._modules) if module is not None]
        buffers = [(m._buffers, name, b, b.clone()) for m in modules for name, b in m._buffers.items() if b is not None]
        after = [RandomState(state.device) for state in self._states]
        try:
            for state in self._states:
                state.restore()
            yield closure
        finally:
            for state in after:
                state.restore()
            for owner, name, buffer, value in buffers:
                owner[name] = buffer.copy_(value)


class RandomState:
    """The state of torch's generator for a device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        module: Any = torch if device.type == "cpu" else getattr(torch, device.type, None)  # none for meta tensors
        self._module = module if hasattr(module, "get_rng_state") else None
        self._of = (device,) if hasattr(module, "current_device") else ()
        self._state = self._module and self._module.get_rng_state(*self._of)

    def restore(self) -> None:
        """Set the generator to this state."""
        if self._module is not None:
            self._module.set_rng_state(self._state, *self._of)


def _modules_of(ids: frozenset[int]) -> list[torch.nn.Module]:
    """Return the modules, and all in them, that hold one of the parameters; nothing leads from a parameter to them."""
    modules = [it for it in _instances("Module") if isinstance(it, torch.nn.Module) and "_parameters" in vars(it)]
    holders = [each for each in modules if not ids.isdisjoint(map(id, each.parameters()))]
    return [*{id(module): module for holder in holders for module in holder.modules()}.values()]


class Leaves:
    """The tensors of the autograd graph that stand for parameters: FSDP2 gathers its shards into others."""

    def __init__(self) -> None:
        self._sharded: frozenset[int] = frozenset()
        self._managed: list[weakref.ref[Any]] = []
        self._managed_ids: frozenset[int] = frozenset()

    def of(self, params: Sequence[Tensor]) -> list[Tensor]:
        """Return what a backward pass accumulates into for the sake of these parameters."""
        sharded = [p for p in params if is_sharded(p)]
        if not sharded:
            return [*params]
        ids = frozenset(map(id, sharded))
        if ids != self._sharded:
            managed = _managed_by_fsdp(ids)
            self._sharded, self._managed = ids, [*map(weakref.ref, managed)]
            self._managed_ids = frozenset([id(each.sharded_param) for each in managed])
        gathered = [getattr(managed(), "_unsharded_param", None) for managed in self._managed]
        own = [p for p in params if id(p) not in self._managed_ids]  # those of tensor parallel, too
        return [*own, *(p for p in gathered if p is not None)]


def reshard(params: Sequence[Tensor]) -> None:
    """Let FSDP2 gather again what was moved outside of a step: it keeps the root after a forward pass alone."""
    sharded = [p for p in params if is_sharded(p)]
    if sharded:
        managed = _managed_by_fsdp(frozenset(map(id, sharded)))
        ids = {id(p) for each in managed for p in (each.sharded_param, getattr(each, "_unsharded_param", None))}
        for module in _instances("FSDPModule"):
            if not ids.isdisjoint(map(id, module.parameters())):
                module.reshard()


def _managed_by_fsdp(ids: frozenset[int]) -> list[Any]:
    """Return what FSDP2 keeps for each sharded parameter; nothing leads from the parameter to it."""
    return [each for each in _instances("FSDPParam") if id(getattr(each, "sharded_param", None)) in ids]


def _instances(name: str) -> list[Any]:
    """Return the living objects of the classes of this name, and of those derived from them."""
    living = gc.get_objects()
    kinds = {kind for kind in {*map(type, living)} if name in [base.__name__ for base in getattr(kind, "__mro__", ())]}
    return [each for each in living if type(each) in kinds]
