"""A watched loss belongs to the gradients that are there, however the loop made or cleared them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import polyak
from catalogue import each_method

ROWS = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 3.0]])


def pair(method) -> tuple[nn.Linear, polyak.PolyakOptimizer]:
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    return model, method.build(model.parameters())


def objective(model: nn.Module, row: int = 0) -> Tensor:
    return (model(ROWS[row]) - 1.0).square().mean()


@each_method
def test_a_loss_whose_gradients_were_cleared_by_the_model_is_forgotten(method):
    """A GradScaler skips the step and the loop clears with model.zero_grad(), as the HF Trainer does."""
    model, optimizer = pair(method)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-100)  # overflows once
    for _ in range(2):
        loss = optimizer.watch(1e6 * objective(model), scaler)
        model.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    assert torch.equal(optimizer.last_step().loss, loss.detach())
    assert optimizer.last_step().skipped_steps == 0


@each_method
def test_only_the_accumulation_that_was_cleared_is_forgotten(method):
    model, optimizer = pair(method)
    for clear in (True, False):
        for row in range(3):
            (optimizer.watch(objective(model, row)) / 3).backward()
        if clear:
            model.zero_grad()
    mean = torch.stack([objective(model, row) for row in range(3)]).mean()
    torch.testing.assert_close(optimizer.step(), mean.detach(), rtol=1e-6, atol=0)


@each_method
def test_several_losses_may_be_watched_in_one_backward(method):
    model, optimizer = pair(method)
    for _ in range(2):  # the second time over a value that was cleared
        model.zero_grad()
        total = sum(0.5 * optimizer.watch(objective(model, row)) for row in range(2))
        total.backward()
    torch.testing.assert_close(optimizer.step(), total.detach(), rtol=1e-6, atol=0)


@each_method
def test_gradients_that_come_late_keep_what_was_watched_before(method):
    """FSDP2 without synchronisation leaves p.grad empty until the last micro-batch."""
    model, optimizer = pair(method)
    inner = nn.Linear(2, 1)
    inner.load_state_dict(model.state_dict())
    losses = [objective(inner, row) for row in range(3)]
    for loss in losses:
        (optimizer.watch(loss) / 3).backward()
    for p, q in zip(model.parameters(), inner.parameters(), strict=True):
        p.grad = q.grad
    torch.testing.assert_close(optimizer.step(), torch.stack(losses).mean().detach(), rtol=1e-6, atol=0)


@each_method
def test_a_loop_may_divide_the_watched_loss_in_place(method):
    model, optimizer = pair(method)
    loss = optimizer.watch(objective(model))
    whole = loss.detach().clone()
    loss /= 4
    loss.backward()
    torch.testing.assert_close(optimizer.step(), whole / 4, rtol=1e-6, atol=0)


@each_method
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_narrow_loss_is_multiplied_in_float32(method, dtype):
    w = nn.Parameter(torch.tensor(1.7, dtype=dtype))
    optimizer = method.build([w])
    loss = optimizer.watch(w * 1.0)
    (loss * 1.1).backward()
    whole, share = loss.detach().double(), torch.tensor(1.1, dtype=dtype).double()
    assert math.isclose(float(optimizer.step()), float(share * whole), rel_tol=1e-6)


@each_method
def test_a_scaler_without_the_loss_is_named_with_the_line_to_write(method):
    model, optimizer = pair(method)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(objective(model)).backward()
    with pytest.raises(RuntimeError, match=r"needs the loss: the GradScaler .* scaler\.step\(optimizer, loss=loss\)"):
        scaler.step(optimizer)
