"""The default on the CPU with tensors that are cut into pieces: PyTorch's kernel of Adam, and averages in trials."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import polyak
from observe import random_like, snapshot

METHODS = {
    "MoMoAdam": (polyak.MoMoAdam, {}),
    "MoMoAdam, decay": (polyak.MoMoAdam, {"weight_decay": 0.1, "lr": 1.0}),
    "MoMoAdam, decoupled decay": (polyak.MoMoAdam, {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    "NGNMD": (polyak.NGNMD, {"weight_decay": 0.1}),
    "NGNMD without momentum": (polyak.NGNMD, {"betas": (0.0, 0.99)}),
    "IAMAdam": (polyak.IAMAdam, {}),
    "ScheduleFreeAdamSPS": (polyak.ScheduleFreeAdamSPS, {"lr": 0.1}),
    "ScheduleFreePlus": (polyak.ScheduleFreePlus, {}),
    "MoMo, decay": (polyak.MoMo, {"weight_decay": 0.1}),
    "SignSPS": (polyak.SignSPS, {"weight_decay": 0.1}),
}
SHAPES = ((300, 1000), (64,), (300, 300), (40, 30, 8, 8), (5,))  # several pieces, one piece, a shared one
each = pytest.mark.parametrize(("cls", "options"), METHODS.values(), ids=METHODS)
each_type = pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])


def build(cls, dtype, **options):
    values = random_like([torch.empty(shape, dtype=dtype) for shape in SHAPES], seed=1)
    values[3] = values[3].contiguous(memory_format=torch.channels_last)
    return cls([nn.Parameter(value) for value in values], **options)


def train(optimizer, seed, spoil=None):
    params = optimizer.param_groups[0]["params"]
    for p, g in zip(params, random_like(params, seed=seed, scale=0.01), strict=True):
        p.grad = g.to(memory_format=torch.channels_last) if g.dim() == 4 else g
    if spoil is not None:
        params[2].grad.view(-1)[-1] = spoil
    optimizer.step(loss=1.0)


@each
@each_type
def test_large_tensors_move_as_in_the_loop(cls, options, dtype, near):
    pieces, loop = (build(cls, dtype, **options, **backend) for backend in ({}, {"foreach": False}))
    for seed in range(5):
        for optimizer in (pieces, loop):
            train(optimizer, seed)
    ours, theirs = snapshot(pieces), snapshot(loop)
    for name, value in ours.items():
        assert torch.allclose(value, theirs[name], rtol=near, atol=near), name


@each
@pytest.mark.parametrize("spoil", [math.nan, math.inf, -math.inf, 1e30])
def test_a_bad_batch_leaves_large_buffers_as_they_were(cls, options, spoil):
    optimizer, other = (build(cls, torch.float32, **options) for _ in range(2))
    for seed in range(2):
        train(optimizer, seed)
        train(other, seed)
    before = snapshot(optimizer)
    train(optimizer, 2, spoil)
    after = snapshot(optimizer)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed <= {"step_size 0", "skipped_steps 0"}
    for each in (optimizer, other):
        train(each, 3)
    after, expected = snapshot(optimizer), snapshot(other)
    assert all(torch.equal(after[name], expected[name]) for name in after if name != "skipped_steps 0")


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_momo_adam_at_its_cap_is_adam_for_large_tensors(decay):
    ours = build(polyak.MoMoAdam, torch.float32, lr=1e-3, weight_decay=decay, decoupled_weight_decay=True)
    params = [nn.Parameter(p.detach().clone()) for p in ours.param_groups[0]["params"]]
    adam = torch.optim.AdamW(params, lr=1e-3, weight_decay=decay, foreach=False)
    for seed in range(5):
        for optimizer, step in ((ours, lambda: ours.step(loss=1000.0)), (adam, adam.step)):
            own = optimizer.param_groups[0]["params"]
            for p, g in zip(own, random_like(own, seed=seed), strict=True):
                p.grad = g
            step()
    for p, q in zip(ours.param_groups[0]["params"], params, strict=True):
        assert torch.allclose(p, q, rtol=1e-6, atol=1e-7)
