"""What a step measures and moves: for every group its vectors, and the backend that works on them.

`gather` chooses the backend of a group once in a step, so that later code does not check devices, types and options.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain, islice, starmap
from operator import is_, itemgetter
from typing import Any, Protocol, cast, final

import torch
from torch import Tensor

from .._backend import chunks, cuda_backend
from .._backend.chunks import COMMON, Vector, are_on_host, by_type, columns, pack, same_layout
from .._backend.cpu import CpuKernels
from .._backend.distributed import aligned, any_sharded
from .._backend.general import General, Several, squares_of_gradients
from .._backend.moves import MOMENTUM, Form, Preconditioner
from .._backend.pieces import Pieces
from .._backend.scalars import Scalar
from .._backend.vector import Products, add_up, local_real_view
from .options import check_dense, is_infinite, is_scalar

Group = dict[str, Any]
IS_CUDA = Tensor.is_cuda.__get__  # type: ignore[attr-defined]
GRAD = Tensor.grad.__get__  # type: ignore[union-attr]
GUARDS = sys.modules.get("torch._C._dynamo.guards")  # not public in torch; without it, no step keeps anything
TensorGuards: Any = getattr(GUARDS, "TensorGuards", None)
State = Mapping[Tensor, Mapping[str, Tensor]]


class Part(Protocol):
    """The vectors of one group and how they are measured and moved; `General` documents them."""

    group: Group
    params: Sequence[Tensor]
    x: Vector
    g: Vector
    u: Vector
    buffers: Mapping[str, Vector]
    form: Form
    mu: Any
    decay: Any
    coupled_decay: float
    divisor: Any
    preconditioner: Preconditioner | None
    beta: Any
    ahead: Any
    next_beta: Any
    apart: Any
    squared_decay: float
    signed: bool
    skip: Any
    state: State
    measures_norm: bool
    gradient_squares: Any
    squares: Any
    model: Any
    floor: Any
    numbers: bool
    sharded: bool
    can_be_kept: bool

    @property
    def owners(self) -> Sequence[Tensor]: ...
    @property
    def has_float16(self) -> bool: ...
    @property
    def largest(self) -> float: ...
    @property
    def rounding(self) -> float: ...
    def take_gradients(self, g: Vector) -> None: ...
    def sum_squares(self, x: Vector) -> Scalar: ...
    def dot(self, x: Vector, y: Vector) -> Scalar: ...
    def average_(
        self, beta: Scalar | None, beta2: Scalar | None = None, with_x: bool = False, deferred: bool = False
    ) -> Products: ...
    def same_move(self, other: Any) -> None: ...
    def store_averages(self) -> None: ...
    def forget_averages(self) -> None: ...
    def scaled(self, gamma: Any) -> Any: ...
    def move(self, gamma: Scalar, keep: Scalar, skip: Any, measured: bool) -> Scalar | None: ...
    def scale_(self, x: Vector, a: Scalar) -> None: ...


def gather(group: Group, state: State, names: Iterable[str], form: Form) -> Part:
    """Return what a step of a group reads and moves: the parameters that have a gradient, and the named buffers."""
    params: list[Tensor] = []
    grads: list[Tensor] = []
    for p in group["params"]:
        if p.grad is not None:
            params.append(p)
            grads.append(p.grad)
    buffers: dict[str, Vector] = {}
    for name in names:
        buffers[name] = []
        for p in params:
            buffers[name].append(state[p][name])
    part = part_of(group, params, grads, buffers)
    part.form, part.mu = form, group.get("momentum") or 0.0  # IAM's None stands for a μ of its own
    return part


def part_of(group: Group, params: list[Tensor], grads: Vector, buffers: Mapping[str, Vector]) -> Part:
    """Return parameters, their gradients and buffers as the group's backend takes them."""
    fused, x = group.get("fused"), params
    kernels = _kernels_for(group, params) if params else None
    if kernels and (packed := pack([params, grads, *buffers.values()], kernels.TYPES)):
        return cast(Part, kernels(group, params, *packed[:2], dict(zip(buffers, packed[2:], strict=True))))
    kinds = set()
    for tensor in (*params, *grads):
        kinds.add((tensor.__class__, tensor.layout, tensor.dtype))
    common = kinds <= COMMON and not torch.compiler.is_compiling()  # which needs `local_real_view`, too
    if not common:
        for grad in grads:
            check_dense(grad)
        x = [local_real_view(p) for p in params]
        grads = x if grads is params else [local_real_view(aligned(g, p)) for g, p in zip(grads, params, strict=True)]
        buffers = {name: [local_real_view(tensor) for tensor in buffer] for name, buffer in buffers.items()}
    elif not kernels and are_on_host([*x, *grads, *chain(*buffers.values())]):
        return Pieces(group, params, x, grads, buffers)
    vectors = {"x": x, "g": grads, **buffers}
    if kernels and (fused or common):
        part = _by_kernel(kernels, group, params, vectors)
    else:
        part = General(group, params, x, grads, buffers)
        part.can_be_kept = common and bool(params) and params[0].is_cuda
    part.sharded = not common and any_sharded(params)
    return part


@final
class Kept:
    """The part of a group, kept for the next step, which reuses it unless more than the gradients has changed.

    It holds no gradient. Examining every tensor again takes as long as moving a small network.
    """

    def __init__(self, method: Any, parts: Sequence[Part]) -> None:
        self.groups, self.options = [*method.param_groups], _options_of(method)
        self.params = [*chain.from_iterable([part.params for part in parts])]
        self.owners, self.states = [*method.state], [*method.state.values()]
        self.rows = [
            (itemgetter(name), [method.state[p] for p in part.params]) for part in parts for name in part.buffers
        ]
        self.buffers = [*chain.from_iterable(starmap(map, self.rows))]
        self.addresses = [*map(Tensor.data_ptr, chain(self.params, self.buffers))]
        tensors = [*self.params, *map(GRAD, self.params)]
        sizes, strides = ([[*look(tensor)] for tensor in tensors] for look in (Tensor.size, Tensor.stride))
        self.guards = TensorGuards(*tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides)
        self.fields = [{name: value for name, value in vars(part).items() if name not in ("g", "u")} for part in parts]
        self.kinds = [type(part) for part in parts]

    @classmethod
    def of(cls, method: Any, parts: Sequence[Part]) -> list[Kept]:
        """Return what is kept of all parts: nothing if one may be invalid in the next step without a visible change."""
        can = [p.can_be_kept and not p.sharded and len(p.params) == len(p.group["params"]) for p in parts]
        if not (TensorGuards and parts and all(can)):
            return []
        is_complex = any([any(map(Tensor.is_complex, part.params)) for part in parts])  # it is moved as a real view
        return [] if is_complex else [cls(method, parts)]

    def again(self, method: Any) -> list[Part]:
        """Return the parts with the present gradients; an empty list if anything else has changed."""
        groups, state = method.param_groups, method.state
        params = [*chain.from_iterable(map(itemgetter("params"), groups))]
        try:
            same = _are(groups, self.groups) and _are(params, self.params) and _options_of(method) == self.options
            if not (same and _are(state, self.owners) and _are(state.values(), self.states)):
                return []
            buffers, grads = [*chain.from_iterable(starmap(map, self.rows))], [*map(GRAD, params)]
            if not (_are(buffers, self.buffers) and self.guards.check(*params, *grads)):
                return []
            if [*map(Tensor.data_ptr, chain(params, buffers))] != self.addresses:
                return []
        except (KeyError, RuntimeError):  # a buffer is missing; a tensor has no address
            return []
        parts: list[Part] = []
        left = iter(grads)
        for group, kind, fields in zip(groups, self.kinds, self.fields, strict=True):
            part = object.__new__(kind)
            vars(part).update(fields)
            part.take_gradients([*islice(left, len(group["params"]))])
            parts.append(part)
        return parts


def _are(present: Collection[Any], kept: Sequence[Any]) -> bool:
    """Return whether these are the very objects that were kept."""
    return len(present) == len(kept) and all(map(is_, present, kept))


def _options_of(method: Any) -> list[tuple[Any, ...]]:
    """Return the options that decide which part a group is."""
    options: list[tuple[Any, ...]] = []
    for group in method.param_groups:
        kinds = group.get("fused"), group["foreach"], group.get("float32_momentum")
        options.append((*kinds, *method.buffers(group)))
    return options


def parts_of(method: Any) -> list[Part]:
    """Return the parts of all groups, and keep them for the next step if it may take all of them again."""
    parts = [] if torch.compiler.is_compiling() else _again(method)
    if not parts:
        method._init_group()
        for group in method.param_groups:
            parts.append(gather(group, method.state, method.buffers(group), method.form(group)))
        if not torch.compiler.is_compiling():
            method._kept[:] = Kept.of(method, parts)
    return parts


def _again(method: Any) -> list[Part]:
    """Return the parts of the last step with the present gradients; an empty list if one of them has changed."""
    groups = method.param_groups
    options = [group.get(name) for group in groups for name in method._later]
    if not _are(options, method._options):
        method._check_options()
    parts: list[Part] = method._kept[0].again(method) if method._kept else []
    for part in parts:
        lr = part.group["lr"]
        too_large = (method._finite_lr or part.group.get("weight_decay")) and is_infinite(lr)
        if too_large or not (is_scalar(lr) if isinstance(lr, Tensor) else isinstance(lr, float) and lr >= 0):
            return []
        part.form, part.mu = method.form(part.group), part.group.get("momentum") or 0.0
    return parts


def whole(group: Group, params: list[Tensor]) -> Part:
    """Return parameters to be projected, with or without gradients, as the group's backend takes them."""
    return part_of(group, params, params, {})


def sum_squares(parts: Sequence[Part], like: Tensor, needed: bool = True) -> Scalar:
    """Return ‖g‖² over all groups; if it is not `needed`, 0 where all measure it together with the averages."""
    if not needed and all([part.measures_norm and not part.sharded for part in parts]):
        return 0.0
    if len(parts) == 1:
        return parts[0].sum_squares(parts[0].g)
    together = all([part.sharded for part in parts])
    return squares_of_gradients(parts) if together else add_up([part.sum_squares(part.g) for part in parts], like)


def decay_momentum(part: Part, keep: Scalar) -> None:
    """Let momentum that is too long for its type decay, although nothing moves; averages are stored all the same."""
    part.store_averages()
    if keep != 1.0 and MOMENTUM in part.buffers:
        part.scale_(part.buffers[MOMENTUM], keep)


def _kernels_for(group: Group, params: list[Tensor]) -> Any:
    """Return the class of the kernels on the parameters' device; None if there are none or the group excludes them."""
    device, fused = params[0].device, group.get("fused")
    asks = fused or (fused is None and device.type == "cuda" and group["foreach"] is None and all(map(IS_CUDA, params)))
    if not asks or torch.compiler.is_compiling() or device != group["step_size"].device:  # which a kernel reads there
        return None
    if device.type == "cpu" and not chunks.INTERPRETED:
        return CpuKernels
    return _cuda_kernels(device, bool(fused)) if device.type in ("cpu", "cuda") else None


def _cuda_kernels(device: torch.device, needed: bool) -> Any:
    cuda = cuda_backend()
    if needed and cuda is None:
        raise RuntimeError("fused=True needs Triton on CUDA: pip install triton, or leave fused out.")
    return cuda.CudaKernels if cuda and (needed or cuda.is_usable(device)) else None


def _by_kernel(kernels: Any, group: Group, params: list[Tensor], vectors: Mapping[str, Vector]) -> Part:
    """Return a part for the tensors of every type that has a kernel, and a general part for those that have none."""
    parts: list[Part] = []
    others: list[tuple[Tensor, ...]] = []
    for owned in by_type([params, *vectors.values()]):
        on_device = owned[0][0].device.type == params[0].device.type  # whose kernels these are
        packed, rows = pack(owned[1:], kernels.TYPES) if on_device else [], []
        if not packed:
            rows = [*zip(*owned, strict=True)]
            alike = [on_device and same_layout(row[1:]) for row in rows]
            owned = columns([row for row, is_alike in zip(rows, alike, strict=True) if is_alike])
            packed = pack(owned[1:], kernels.TYPES) if owned else []
            rows = [row for row, is_alike in zip(rows, alike, strict=True) if not (packed and is_alike)]
        if packed:
            buffers = dict(zip(vectors, packed, strict=True))
            parts.append(kernels(group, owned[0], buffers.pop("x"), buffers.pop("g"), buffers))
        others += rows
    if others:
        owners, *rest = columns(others)
        left = dict(zip(vectors, rest, strict=True))
        parts.append(General(group, owners, left.pop("x"), left.pop("g"), left))
    return parts[0] if len(parts) == 1 else cast(Part, Several(group, params, parts))
