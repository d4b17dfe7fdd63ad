"""SAMSPS: a closure that is evaluated twice, and what the second evaluation leaves as it was."""

from __future__ import annotations

import contextlib
import gc
import math
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import polyak
from observe import bits, changed, moved, refused, snapshot


class Task:
    """A network with dropout and batch norm, and a closure that counts its evaluations."""

    def __init__(self, **options: Any) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.BatchNorm1d(4, affine=False), nn.Linear(4, 1))
        self.optimizer = polyak.SAMSPS(self.model.parameters(), **options)
        self.x = torch.randn(16, 3)
        self.seen: list[list[Tensor]] = []
        self.losses: list[Tensor] = []
        self.on_second: Callable[[Tensor], Tensor] = lambda loss: loss

    def closure(self) -> Tensor:
        self.seen.append([p.detach().clone() for p in self.model.parameters()])
        self.optimizer.zero_grad()
        loss = (self.model(self.x) - 1).square().mean()
        if len(self.seen) % 2 == 0:
            loss = self.on_second(loss)
        loss.backward()
        self.losses.append(loss.detach())
        return loss


def test_the_second_evaluation_is_rho_away_and_sees_the_same_random_numbers():
    task = Task(rho=0.25, lr=0.0)
    value = task.optimizer.step(task.closure)
    assert value == task.losses[0] == task.optimizer.last_step().loss
    assert value != task.losses[1]
    distances = [torch.dist(a, b) ** 2 for a, b in zip(*task.seen, strict=True)]
    torch.testing.assert_close(sum(distances).sqrt(), torch.tensor(0.25))
    task = Task(rho=0.0)
    task.optimizer.step(task.closure)
    assert task.losses[0] == task.losses[1]


def test_statistics_and_random_states_are_those_after_one_evaluation():
    task, other = Task(rho=0.5), Task()
    other.closure()
    after = torch.get_rng_state()
    torch.manual_seed(0)
    task = Task(rho=0.5)
    task.optimizer.step(task.closure)
    assert torch.equal(torch.get_rng_state(), after)
    for (name, buffer), expected in zip(task.model.named_buffers(), other.model.buffers(), strict=True):
        assert bits(buffer) == bits(expected), name


@pytest.mark.parametrize("bad", [math.nan, math.inf], ids=str)
def test_a_second_loss_that_is_not_finite_moves_nothing(bad):
    task = Task(weight_decay=0.1)
    task.optimizer.step(task.closure)
    before, mean = snapshot(task.optimizer), task.model[2].num_batches_tracked.clone()
    task.on_second = lambda loss: loss * bad
    task.optimizer.step(task.closure)
    assert moved(before, snapshot(task.optimizer)) == set()
    assert int(task.optimizer.last_step().skipped_steps) == 1
    assert task.model[2].num_batches_tracked == mean + 1


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.usefixtures("backend_options")
def test_x_is_restored_if_the_second_evaluation_fails(error, backend_options):
    task = Task(**backend_options)
    before = snapshot(task.optimizer)

    def fail(loss: Tensor) -> Tensor:
        raise error("the loader is gone.")

    task.on_second = fail
    with pytest.raises(error, match="the loader is gone"):
        task.optimizer.step(task.closure)
    assert changed(before, snapshot(task.optimizer)) == set()
    assert len(task.seen) == 2


@pytest.fixture(params=[{}, {"foreach": True}, {"foreach": False}, {"fused": True}], ids=str)
def backend_options(request):
    return request.param


@pytest.mark.filterwarnings("ignore:.* moves nothing")
@pytest.mark.parametrize("ends", ["moved", "not finite", "raised", "without gradient"])
def test_a_step_keeps_no_closure_alive(ends):
    """It holds a batch."""
    task = Task()

    def closure() -> Tensor:
        if ends == "raised":
            raise ValueError("the loader is gone.")
        loss = task.closure()
        if ends == "without gradient":
            task.optimizer.zero_grad()
        return loss * math.nan if ends == "not finite" else loss

    with contextlib.suppress(ValueError):
        task.optimizer.step(closure)
    alive = weakref.ref(closure)
    del closure
    gc.collect()
    assert alive() is None


def test_a_missing_closure_is_one_sentence():
    task = Task()
    task.closure()
    before = snapshot(task.optimizer)
    with refused(RuntimeError, "SAMSPS.step() needs the loss: write optimizer.step(closure)", "zero_grad()"):
        task.optimizer.step()
    with refused(TypeError, "SAMSPS.step() evaluates the loss twice", "write optimizer.step(closure)"):
        task.optimizer.step(loss=1.0)
    with refused(RuntimeError, "SAMSPS: the closure computed no gradient: write optimizer.step(closure)"):
        task.optimizer.step(lambda: 1.0)
    assert changed(before, snapshot(task.optimizer)) == set()


@pytest.mark.slow
def test_a_compiled_model_changes_nothing():
    eager, task = Task(), Task()
    torch._dynamo.reset()
    task.model = torch.compile(task.model, backend="eager", fullgraph=True)
    for seed in range(2):
        torch.manual_seed(seed)
        eager.optimizer.step(eager.closure)
        torch.manual_seed(seed)
        task.optimizer.step(task.closure)
    torch.testing.assert_close(snapshot(task.optimizer), snapshot(eager.optimizer))
    for buffer, expected in zip(task.model.buffers(), eager.model.buffers(), strict=True):
        torch.testing.assert_close(buffer, expected)
