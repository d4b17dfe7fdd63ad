"""A step looks up again whatever has changed since the last one: it equals that of a copy, which has made none."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import polyak
from catalogue import each_backend, each_method
from observe import SMALL_BALLS, random_like, snapshot
from polyak._step import parts

pytestmark = pytest.mark.filterwarnings(SMALL_BALLS)

SHAPES = ((3, 3), (5,), (), (2, 4, 3, 3))
Optimizer = polyak.PolyakOptimizer


def members(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def other_data(optimizer: Optimizer) -> None:
    for p in members(optimizer):
        p.data = p.detach().clone() + 1.0


def other_order(optimizer: Optimizer) -> None:
    p = members(optimizer)[0]
    p.data = p.data.t()  # at the same address


def wider(optimizer: Optimizer) -> None:
    for p in members(optimizer):
        p.grad = None
        p.data = p.data.double()


def one_without_a_gradient(optimizer: Optimizer) -> None:
    members(optimizer)[1].requires_grad_(False)


def other_buffers(optimizer: Optimizer) -> None:
    for buffers in optimizer.state.values():
        for name in buffers:
            buffers[name] = buffers[name] + 0.5


def transposed_buffers(optimizer: Optimizer) -> None:
    for buffers in optimizer.state.values():
        for name, buffer in buffers.items():
            buffers[name] = buffer.t() if buffer.dim() == 2 else buffer  # at the same address


def no_buffers(optimizer: Optimizer) -> None:
    optimizer.state.clear()


def other_state(optimizer: Optimizer) -> None:
    state = copy.deepcopy(optimizer.state_dict())
    for buffers in state["state"].values():
        for name in buffers:
            buffers[name] = buffers[name] + 0.25
    optimizer.load_state_dict(state)


def another_parameter(optimizer: Optimizer) -> None:
    optimizer.param_groups[0]["params"].append(nn.Parameter(torch.ones(4)))


def one_parameter_less(optimizer: Optimizer) -> None:
    del optimizer.param_groups[0]["params"][1]


def another_in_its_place(optimizer: Optimizer) -> None:
    optimizer.param_groups[0]["params"][1] = nn.Parameter(torch.ones(5))


def another_group(optimizer: Optimizer) -> None:
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(4))], "lr": 0.3})


def other_options(optimizer: Optimizer) -> None:
    group = optimizer.param_groups[0]
    group["lr"], group["foreach"], group["fused"] = 0.5, None, None if group["fused"] else True
    if isinstance(group.get("momentum"), float):
        group["momentum"] = 0.3


CHANGES = (
    other_data, other_order, wider, one_without_a_gradient, other_buffers, transposed_buffers, no_buffers, other_state,
    another_parameter, one_parameter_less, another_in_its_place, another_group, other_options,
)  # fmt: skip


def train(optimizer: Optimizer, seed: int, gradient: Callable[[Tensor], Tensor] = lambda g: g) -> None:
    params = members(optimizer)
    for p in params:
        p.grad = None
    for p, g in zip(params, random_like(params, seed=seed), strict=True):
        p.grad = gradient(g) if p.requires_grad else None
    optimizer.step(loss=1.0)


@each_method
@each_backend
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_step_takes_what_has_changed_since_the_last_one(method, backend, change):
    optimizer: Any = method.build(
        [nn.Parameter(x) for x in random_like([torch.empty(s) for s in SHAPES], 1)], **backend
    )
    for seed in range(3):
        train(optimizer, seed)
    change(optimizer)
    twin = copy.deepcopy(optimizer)
    for each in (optimizer, twin):
        train(each, 9)
    ours, theirs = snapshot(optimizer), snapshot(twin)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


GRADIENTS = {
    "in another order": lambda g: g.t() if g.dim() == 2 else g,
    "negated by a flag": lambda g: torch._neg_view(g),
    "with gaps": lambda g: torch.stack([g, g], dim=-1)[..., 0],
}


@each_method
@each_backend
@pytest.mark.parametrize("gradient", GRADIENTS.values(), ids=GRADIENTS)
def test_a_step_takes_gradients_that_lie_in_memory_in_another_way(method, backend, gradient):
    optimizer: Any = method.build(
        [nn.Parameter(x) for x in random_like([torch.empty(s) for s in SHAPES], 1)], **backend
    )
    for seed in range(3):
        train(optimizer, seed)
    twin = copy.deepcopy(optimizer)
    train(optimizer, 9, gradient)
    train(twin, 9, lambda g: gradient(g).contiguous().resolve_neg())
    ours, theirs = snapshot(optimizer), snapshot(twin)
    assert all(torch.allclose(ours[name], theirs[name], rtol=1e-5, atol=1e-7) for name in ours)


@each_method
@each_backend
def test_no_gradient_is_held_after_a_step(method, backend):
    optimizer: Any = method.build([nn.Parameter(torch.ones(5))], **backend)
    for seed in range(3):
        train(optimizer, seed)
        gradient = weakref.ref(members(optimizer)[0].grad)
        optimizer.zero_grad()
        assert gradient() is None


@each_method
@each_backend
def test_steps_are_the_same_where_torch_has_no_guards(method, backend, monkeypatch):
    ends = []
    for guards in (parts.TensorGuards, None):
        monkeypatch.setattr(parts, "TensorGuards", guards)
        params = [nn.Parameter(x) for x in random_like([torch.empty(s) for s in SHAPES], 1)]
        optimizer: Any = method.build(params, **backend)
        for seed in range(3):
            train(optimizer, seed)
        assert guards or not optimizer._kept
        ends.append(snapshot(optimizer))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
