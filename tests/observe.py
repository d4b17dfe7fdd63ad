"""What a step may change, copied so that it can be compared bit by bit; and what a refusal must say."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

import polyak
from polyak._step.advice import Advice

SOUGHT = Advice.SOUGHT
Advice.SOUGHT -= {2}  # a search through all objects takes 0.1 s in the process of the suite; `test_advice` makes it

Snapshot = dict[str, Tensor]

# For modules whose balls are smaller than their models on purpose.
SMALL_BALLS = r"ignore:\w+. L2Ball\(radius=[^)]*\) rescales the parameters from norm"

# A step that is skipped counts itself and reports γ = 0, and leaves everything else as it is.
REPORTS = frozenset({"step_size", "skipped_steps"})


AVERAGES = (
    "gradient_average",
    "square_average",
    "steps",
    "loss_average",
    "dot_average",
    "bound_average",
    "learned_lower_bound",
    "norm_average",
    "model_average",
    "nuclear_norm",
    "largest_step",
    "total_weight",
    "share",
    "slack_value",
    "slack_step",
    "targets",
    "target_steps",
    "last_losses",
    "best_losses",
)


def is_average(name: str) -> bool:
    """Return whether a name of a snapshot is that of an average, which follows every finite batch."""
    return name.split()[0] in AVERAGES


def is_averaging(optimizer: polyak.PolyakOptimizer) -> bool:
    """Return whether a method keeps averages."""
    return bool(optimizer.averages())


def snapshot(optimizer: polyak.PolyakOptimizer) -> Snapshot:
    """Copy every parameter, buffer and scalar of an optimizer."""
    found: Snapshot = {}
    for i, group in enumerate(optimizer.param_groups):
        found |= {f"{name} {i}": value.clone() for name, value in group.items() if isinstance(value, Tensor)}
        for j, p in enumerate(group["params"]):
            found[f"parameter {i}.{j}"] = p.detach().clone()
            found |= {f"{name} {i}.{j}": value.clone() for name, value in optimizer.state.get(p, {}).items()}
    return found


def changed(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> set[str]:
    """Name what is not the same, bit by bit, in two snapshots."""
    both = before.keys() & after.keys()
    return (before.keys() ^ after.keys()) | {name for name in both if bits(before[name]) != bits(after[name])}


def moved(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> set[str]:
    """Name what changed beside the reports of a step."""
    return {name for name in changed(before, after) if name.split()[0] not in REPORTS}


def bits(tensor: Tensor) -> tuple[torch.dtype, bytes]:
    """Return the type and the very bits of a tensor."""
    flat = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    return tensor.dtype, bytes(flat.detach().contiguous().reshape(-1).view(torch.uint8).tolist())


def plain(tree: Any) -> Any:
    """Return nested containers with the type and the bits of every tensor in its place, which `==` compares."""
    return tree_map_only(Tensor, bits, tree)


def give(params: Sequence[Tensor], *grads: Tensor | None) -> None:
    """Hand every parameter its gradient."""
    for p, grad in zip(params, grads, strict=True):
        p.grad = None if grad is None else grad.clone()


def random_like(params: Sequence[Tensor], seed: int = 0, scale: float = 1.0) -> list[Tensor]:
    """Draw a gradient for every parameter."""
    generator = torch.Generator().manual_seed(seed)
    wide = [torch.double if not p.is_complex() else torch.cdouble for p in params]
    pairs = zip(params, wide, strict=True)
    return [(scale * torch.randn(p.shape, dtype=dtype, generator=generator)).to(p.dtype) for p, dtype in pairs]


def refused(error: type[Exception], *parts: str) -> Any:
    """Expect an error of one sentence, on one line, that holds all the parts in their order."""
    line = r"[^\n]*".join(re.escape(part) for part in parts)
    return pytest.raises(error, match=rf"^[^\n]*{line}[^\n]*(?<=[.?])$")
