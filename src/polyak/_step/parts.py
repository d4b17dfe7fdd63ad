"""What a step measures and moves: for every group its vectors, and the backend that works on them.

Here, once per group and step, it is decided which backend that is; nobody asks for devices, types or options again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from operator import is_
from typing import Any, Protocol, cast, final

import torch
from torch import Tensor

from .._backend import chunks, cuda_backend
from .._backend.chunks import COMMON, DTYPE, Vector, by_type, columns, pack, same_layout
from .._backend.cpu import CpuKernels
from .._backend.distributed import PLAIN, aligned, any_sharded
from .._backend.general import General, Several, squares_of_gradients
from .._backend.moves import MOMENTUM, Form, Preconditioner
from .._backend.pieces import Pieces
from .._backend.scalars import Scalar
from .._backend.vector import Products, add_up, real
from .options import check_dense

Group = dict[str, Any]
IS_CPU, IS_CUDA = Tensor.is_cpu.__get__, Tensor.is_cuda.__get__  # type: ignore[attr-defined]
GRAD = Tensor.grad.__get__  # type: ignore[union-attr]
WIDE = ({torch.float32}, {torch.float64})
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
    common = kinds <= COMMON and not torch.compiler.is_compiling()  # which wants `real` views, too
    if not common:
        for grad in grads:
            check_dense(grad)
        x = [real(p) for p in params]
        grads = x if grads is params else [real(aligned(grad, p)) for grad, p in zip(grads, params, strict=True)]
        buffers = {name: [real(tensor) for tensor in buffer] for name, buffer in buffers.items()}
    elif not kernels and _are_pieces([*x, *grads, *chain(*buffers.values())]):
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
    """What the last step found of a group, which the next one takes again unless more than the gradients has changed.

    It holds no gradient. To look up what every tensor is takes as long as to move a small network.
    """

    def __init__(self, part: Part, names: Sequence[str]) -> None:
        self.group, self.options = part.group, _options_of(part.group, names)
        self.params, self.tensors = part.params, [*part.params, *chain(*part.buffers.values())]
        self.addresses, self.sizes = [*map(Tensor.data_ptr, self.tensors)], [*map(Tensor.numel, part.params)]
        self.dtypes, self.kind = {*map(DTYPE, part.params)}, type(part)
        self.is_same_device = IS_CPU if part.params[0].is_cpu else IS_CUDA
        contiguous = all(map(Tensor.is_contiguous, part.params))
        self.layout: Callable[[Tensor], Any] = Tensor.is_contiguous if contiguous else Tensor.stride
        self.layouts = [*map(self.layout, part.params)]
        self.fields = {name: value for name, value in vars(part).items() if name not in ("g", "u")}

    @classmethod
    def of(cls, part: Part, names: Sequence[str]) -> Kept | None:
        """Keep a part; None if it may be another one in the next step although no tensor is."""
        is_whole = not part.sharded and len(part.params) == len(part.group["params"]) > 0
        is_real = not any(map(Tensor.is_complex, part.params))  # a gradient may be a conjugate that is not yet computed
        if not (part.can_be_kept and is_whole and is_real):
            return None
        kept = cls(part, names)
        return kept if kept._fit(part.params, part.g) else None

    def again(self, group: Group, state: State, names: Sequence[str]) -> Part | None:
        """Return the part with the gradients of today, or None if anything else is not as it was."""
        params, tensors = group["params"], group["params"]
        if group is not self.group or _options_of(group, names) != self.options:
            return None
        try:
            if names:
                tensors = [*params, *[state[p][name] for name in names for p in params]]
            if len(tensors) != len(self.tensors) or not all(map(is_, tensors, self.tensors)):
                return None
            grads = [*map(GRAD, params)]
            if [*map(Tensor.data_ptr, tensors)] != self.addresses or not self._fit(params, grads):
                return None
        except (KeyError, RuntimeError):  # a buffer is missing; a gradient has no addresses
            return None
        part: Part = object.__new__(self.kind)
        vars(part).update(self.fields)
        part.take_gradients(grads)
        return part

    def _fit(self, params: Sequence[Tensor], grads: Vector) -> bool:
        """Return whether gradients lie in memory as parameters do that may have been given other data."""
        if not {*map(type, grads)} <= PLAIN or {*map(DTYPE, chain(params, grads))} != self.dtypes:
            return False
        layouts = [[*map(self.layout, tensors)] for tensors in (params, grads)]
        if [*map(Tensor.numel, grads)] != self.sizes or layouts != [self.layouts] * 2:
            return False
        return all(map(self.is_same_device, grads)) and not any(map(Tensor.is_neg, grads))


def _options_of(group: Group, names: Sequence[str]) -> tuple[Any, ...]:
    """Return the options that decide which part a group is."""
    return group.get("fused"), group["foreach"], group.get("float32_momentum"), *names


def parts_of(method: Any) -> list[Part]:
    """Return the parts of all groups, and keep them for the next step if it may take all of them again."""
    parts = [] if torch.compiler.is_compiling() else _again(method)
    if not parts:
        method._init_group()
        for group in method.param_groups:
            parts.append(gather(group, method.state, method.buffers(group), method.form(group)))
        if not torch.compiler.is_compiling():
            kept = [Kept.of(part, method.buffers(part.group)) for part in parts]
            method._kept[:] = [] if None in kept else kept
    return parts


def _again(method: Any) -> list[Part]:
    """Return the parts of the last step with the gradients of today; nothing if one of them is not as it was."""
    parts: list[Part] = []
    groups, kept = method.param_groups, method._kept
    options = [group.get(name) for group in groups for name in method._later]
    if len(options) != len(method._options) or not all(map(is_, options, method._options)):
        method._check_options()
    if len(kept) != len(groups):
        return parts
    for group, old in zip(groups, kept, strict=True):
        lr, part = group["lr"], old.again(group, method.state, method.buffers(group))
        decays = group.get("weight_decay") and getattr(lr, "is_cpu", True) and lr == math.inf  # to be looked at
        if part is None or decays or not (isinstance(lr, Tensor) or (isinstance(lr, float) and lr >= 0)):
            return []
        part.form, part.mu = method.form(group), group.get("momentum") or 0.0
        parts.append(part)
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


def _are_pieces(tensors: Vector) -> bool:
    """Return whether all tensors have one type and lie on the CPU, where the host may read them."""
    on_host = not (chunks.INTERPRETED or torch.compiler.is_compiling())
    return on_host and {*map(DTYPE, tensors)} in WIDE and all(map(IS_CPU, tensors))


def _kernels_for(group: Group, params: list[Tensor]) -> Any:
    """Return the class of the kernels on the parameters' device; None if there are none or the group wants none."""
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
        here = owned[0][0].device.type == params[0].device.type  # whose kernels these are
        packed, rows = pack(owned[1:], kernels.TYPES) if here else [], []
        if not packed:
            rows = [*zip(*owned, strict=True)]
            alike = [here and same_layout(row[1:]) for row in rows]
            owned = columns([row for row, fits in zip(rows, alike, strict=True) if fits])
            packed = pack(owned[1:], kernels.TYPES) if owned else []
            rows = [row for row, fits in zip(rows, alike, strict=True) if not (packed and fits)]
        if packed:
            buffers = dict(zip(vectors, packed, strict=True))
            parts.append(kernels(group, owned[0], buffers.pop("x"), buffers.pop("g"), buffers))
        others += rows
    if others:
        owners, *rest = columns(others)
        left = dict(zip(vectors, rest, strict=True))
        parts.append(General(group, owners, left.pop("x"), left.pop("g"), left))
    return parts[0] if len(parts) == 1 else cast(Part, Several(group, params, parts))
