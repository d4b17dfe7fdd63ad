"""Correct and wrong calls of the public interface, for type checkers; this file is never run.

A wrong call is marked with the error that mypy and pyright must report there. Both refuse a mark without an error.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import assert_type

import torch
from torch import Tensor, nn

import polyak
from polyak import ALIG, SPS, Box, Constraint, L2Ball, PolyakOptimizer, SmoothSPS


def correct(model: nn.Module, loss: Tensor, closure: Callable[[], Tensor]) -> None:
    """Calls that every checker accepts."""
    optimizer = ALIG(model.parameters(), lr=0.1, momentum=0.9, constraint=L2Ball(relative=1.5))
    assert_type(optimizer.step(loss=loss), Tensor | None)
    optimizer.step(loss=1.0, lower_bound=0.5, grad_sq_norm=torch.ones(()))
    optimizer.step(closure)
    assert_type(optimizer.watch(loss), Tensor)
    assert_type(optimizer.watch(loss, torch.amp.GradScaler()), Tensor)
    assert_type(optimizer.last_step().step_size, Tensor)
    assert_type(optimizer.last_step(0).capped, Tensor)
    optimizer.zero_grad(set_to_none=True)
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.add_param_group({"params": [loss], "lr": 1.0, "constraint": None})
    ALIG([{"params": [loss], "lr": 0.1, "lower_bound": 0.2}], lr=math.inf, adjusted_momentum=True, eps=1e-5)
    SPS(model.parameters(), c=0.2, lower_bound=0.1, foreach=None, fused=False, sync_loss=False, process_group=None)
    SmoothSPS(model.parameters(), c=0.2, gamma=2.0, steps_per_epoch=100, float32_momentum=True)
    box: Constraint = Box(-1.0, 1.0)
    methods: list[type[PolyakOptimizer]] = [ALIG, SPS, SmoothSPS]
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
    print(box, methods, schedule, polyak.__version__)


def wrong(model: nn.Module, loss: Tensor) -> None:
    """Calls that every checker refuses."""
    optimizer = ALIG(model.parameters())
    optimizer.step(loss)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    optimizer.step(loss="0.5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    optimizer.step(los=loss)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    optimizer.watch(1.0)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    optimizer.last_step("first")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    print(optimizer.last_step().gamma)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    ALIG()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    ALIG(model)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    ALIG(model.parameters(), 0.1, 0.9)  # type: ignore[call-arg, arg-type]  # pyright: ignore[reportCallIssue]
    ALIG(model.parameters(), lr="0.1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    ALIG(model.parameters(), learning_rate=0.1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    ALIG(model.parameters(), momentum=None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    ALIG(model.parameters(), weight_decay=1e-4)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    ALIG(model.parameters(), constraint=100.0)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    ALIG(model.parameters(), constraint=L2Ball)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    SPS(model.parameters(), adjusted_momentum=True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    SPS(model.parameters(), c="0.5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    SmoothSPS(model.parameters())  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    ALIG(model.parameters(), fused="yes")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    L2Ball(1.0, relative=1.5)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    L2Ball()  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    L2Ball("100")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    L2Ball(radius=100.0).radius = 50.0  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
