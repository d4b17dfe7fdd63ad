"""Learning-rate schedulers act on the cap; a cap that cannot be scheduled is refused in one sentence."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

import polyak
from catalogue import METHODS, each_capped_form, each_classic, each_classic_form, each_form, each_method, each_uncapped
from observe import changed, give, is_average, moved, random_like, snapshot

LR = 0.1


def _cycles(optimizer: polyak.PolyakOptimizer) -> bool:
    """Return whether torch's schedulers may cycle the momentum, which they refuse where there is none."""
    return not optimizer.defaults.keys().isdisjoint({"momentum", "betas"})


# Every schedule grows by less than 20 % per step, so that no method's own limit on growth is in the way.
SCHEDULERS: dict[str, Callable[[polyak.PolyakOptimizer], Any]] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda t: 1 / (1 + t)),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda t: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 3),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 5]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, factor=0.9, total_iters=4),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, start_factor=0.5, total_iters=8),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.8),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, total_iters=20),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=20),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3, eta_min=0.9 * LR),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(
        o, 0.5 * LR, LR, step_size_up=6, base_momentum=0.5, max_momentum=0.8, cycle_momentum=_cycles(o)
    ),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(
        o, LR, total_steps=20, div_factor=2, pct_start=0.5, cycle_momentum=_cycles(o)
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ExponentialLR(o, 0.9), lr_scheduler.StepLR(o, 2)]
    ),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.9), lr_scheduler.ExponentialLR(o, 0.9)], milestones=[3]
    ),
}
each_scheduler = pytest.mark.parametrize("scheduler", SCHEDULERS.keys())


def fresh() -> list[nn.Parameter]:
    return [nn.Parameter(value) for value in random_like([torch.empty(3), torch.empty(2)], seed=7)]


def advance(schedule: Any) -> None:
    arguments = {"metrics": 1.0} if "metrics" in inspect.signature(schedule.step).parameters else {}
    with warnings.catch_warnings():  # SequentialLR itself calls the epoch argument that torch deprecates
        warnings.simplefilter("ignore", UserWarning)
        schedule.step(**arguments)


def test_every_scheduler_of_torch_is_here():
    found = {name for name, cls in vars(lr_scheduler).items() if isinstance(cls, type) and hasattr(cls, "step")}
    assert found - {"Optimizer", "LRScheduler", "_LRScheduler"} == SCHEDULERS.keys()


@each_capped_form
@each_scheduler
@pytest.mark.parametrize("kind", [float, torch.tensor], ids=["float", "tensor"])
def test_a_scheduler_acts_on_the_cap(method, form, scheduler, kind):
    params, caps = fresh(), []
    optimizer = method.build(params, "nesterov", lr=kind(LR))
    schedule = SCHEDULERS[scheduler](optimizer)
    for t in range(10):
        caps.append(float(optimizer.param_groups[0]["lr"]))
        give(params, *(1e-2 * grad for grad in random_like(params, seed=t)))
        optimizer.step(loss=1e3)
        advance(schedule)
        assert float(optimizer.last_step().step_size) == pytest.approx(caps[-1], rel=1e-6 if method.hard_cap else 1e-2)
        assert bool(optimizer.last_step().capped) is method.hard_cap
    assert len(set(caps)) > 1


@each_classic
@pytest.mark.parametrize("scheduler", ["OneCycleLR", "CyclicLR"])
def test_schedulers_that_cycle_the_momentum_do_so(method, scheduler):
    params, seen = fresh(), []
    optimizer = method.build(params, "nesterov", lr=LR)
    schedule = SCHEDULERS[scheduler](optimizer)
    for t in range(10):
        seen.append(optimizer.param_groups[0]["momentum"])
        give(params, *random_like(params, seed=t))
        optimizer.step(loss=0.1)
        advance(schedule)
    assert len(set(seen)) > 5
    assert all(0.5 <= momentum <= 0.95 for momentum in seen)


@each_classic
def test_momentum_switched_on_later_starts_from_an_empty_buffer(method):
    params, twins = fresh(), fresh()
    optimizer, twin = method.build(params, "none", lr=LR), method.build(twins, "nesterov", lr=LR)
    give(params, *random_like(params))
    optimizer.step(loss=0.0)
    optimizer.param_groups[0]["momentum"] = twin.param_groups[0]["momentum"]
    for side in (optimizer, twin):
        give(side.param_groups[0]["params"], *random_like(params))
        side.step(loss=1.0)
    assert changed(snapshot(optimizer), snapshot(twin)) == set()


@each_method
def test_a_state_with_a_scheduler_goes_on_exactly(method):
    runs = []
    for stop in (False, True):
        params = fresh()
        optimizer = method.build(params, "nesterov", lr=LR)
        schedule = SCHEDULERS["CosineAnnealingLR"](optimizer)
        for t in range(6):
            if stop and t == 3:
                states = optimizer.state_dict(), schedule.state_dict()
                optimizer = method.build(params, "nesterov", lr=LR)
                schedule = SCHEDULERS["CosineAnnealingLR"](optimizer)
                optimizer.load_state_dict(states[0])
                schedule.load_state_dict(states[1])
            give(params, *random_like(params, seed=t))
            optimizer.step(loss=1.0)
            schedule.step()
        runs.append(snapshot(optimizer))
    assert changed(*runs) == set()


@each_uncapped
@pytest.mark.parametrize("factor", [0.0, -1.0], ids=["nan", "negative"])
def test_a_schedule_on_an_infinite_or_negative_cap_is_refused(method, factor):
    params = fresh()
    optimizer = method.build(params, "nesterov", lr=math.inf)
    lr_scheduler.LambdaLR(optimizer, lambda t: factor)
    give(params, *random_like(params))
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match=r"^[^\n]*lr=(nan|-inf)[^\n]*schedule[^\n]*finite lr > 0[^\n]*$"):
        optimizer.step(loss=1.0)
    assert {name for name in changed(before, snapshot(optimizer)) if name in before} == set()


@each_uncapped
def test_an_infinite_cap_in_one_group_is_refused_before_another_moves(method):
    params = fresh()
    optimizer = method.build([{"params": params[:1], "lr": LR}, {"params": params[1:], "lr": math.inf}])
    optimizer.param_groups[1]["lr"] *= 0.0
    give(params, *random_like(params))
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match="lr=nan"):
        optimizer.step(loss=1.0)
    assert changed(before, snapshot(optimizer)) == set()


@each_form
@pytest.mark.parametrize("lr", [math.nan, -0.1], ids=str)
def test_a_tensor_cap_that_is_no_cap_moves_nothing(method, form, lr):
    """Its value is on the device, where no error can be raised without waiting for it."""
    params = fresh()
    optimizer = method.build(params, form, lr=torch.tensor(LR))
    optimizer.param_groups[0]["lr"].fill_(lr)
    give(params, *random_like(params))
    before = snapshot(optimizer)
    optimizer.step(loss=1.0)
    after = snapshot(optimizer)
    assert {name for name in moved(before, after) if "parameter" in name or "previous" in name} == set()


@each_classic_form
@pytest.mark.parametrize("shape", [(), (1,)], ids=str)
def test_a_tensor_cap_equals_the_number(method, form, shape):
    ends = []
    for lr in (LR, torch.full(shape, LR)):
        params = fresh()
        optimizer = method.build(params, form, lr=lr)
        for t in range(5):
            give(params, *random_like(params, seed=t))
            optimizer.step(loss=0.3 * t)
        ends.append({name: value for name, value in snapshot(optimizer).items() if not name.startswith("lr")})
    assert changed(*ends) == set()


@each_form
def test_a_cap_of_zero_moves_nothing_and_counts_nothing(method, form):
    params = fresh()
    optimizer = method.build(params, form, lr=LR)
    optimizer.param_groups[0]["lr"] = 0.0
    give(params, *random_like(params))
    before = snapshot(optimizer)
    optimizer.step(loss=1.0)
    after = snapshot(optimizer)
    assert {name for name in changed(before, after) if name in before and not is_average(name)} == set()
    assert not optimizer.last_step().skipped
    assert bool(optimizer.last_step().capped) is method.hard_cap


def test_the_methods_agree_on_what_a_scheduler_needs():
    assert all("lr" in method.defaults for method in METHODS)
