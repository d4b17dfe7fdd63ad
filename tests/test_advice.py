"""Warnings: what is probably a mistake is said once per optimizer, and what is fine says nothing."""

from __future__ import annotations

import copy
import inspect
import math
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

import polyak
from catalogue import each_classic, each_form, each_method, each_uncapped, each_undecayed
from observe import SOUGHT, give
from polyak._step.advice import Advice
from problem import Problem

STEPS = 50


def fresh() -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))]


def run(optimizer: polyak.PolyakOptimizer, steps: int, scale: float = 1.0, **given: Any) -> None:
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for _ in range(steps):
        give(params, *(scale * torch.ones_like(p) for p in params))
        optimizer.step(**given)


def warned(*parts: str) -> Any:
    return pytest.warns(UserWarning, match=".*".join(parts) + r".*[.]$")


def said(call: Callable[[], None]) -> list[str]:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        call()
    return [str(warning.message) for warning in found]


# A step that can never move

IDLE: dict[str, tuple[float, float, str]] = {
    "loss at the bound": (0.0, 1.0, "not above lower_bound=0"),
    "loss below the bound": (-1.0, 1.0, r"since the loss \(-1\) was not above lower_bound=0: give a bound below"),
    "zero gradient": (1.0, 0.0, "the gradient was 0"),
    "loss that is not finite": (math.nan, 1.0, r"not finite .* last_step\(\)"),
    "gradient that is not finite": (1.0, math.inf, "not finite"),
}


@each_form
@pytest.mark.parametrize(("loss", "scale", "why"), IDLE.values(), ids=IDLE.keys())
def test_fifty_steps_without_a_move_say_why_once(method, form, loss, scale, why):
    params = [nn.Parameter(torch.zeros(size)) for size in (3, 2)]  # at 0 no average of ⟨g, x⟩ is rounded
    optimizer = method.build([{"params": [p]} for p in params], form, lr=0.1)
    run(optimizer, STEPS - 1, scale, loss=loss)
    with warned(method.name, f"nothing has moved for {STEPS} steps running", why):
        run(optimizer, 1, scale, loss=loss)
    assert said(lambda: run(optimizer, 2 * STEPS, scale, loss=loss)) == []


@each_classic
def test_one_step_that_moves_starts_the_count_again(method):
    optimizer = method.build(fresh(), lr=1e-6)
    for _ in range(3):
        run(optimizer, STEPS - 1, loss=-1.0)
        run(optimizer, 1, loss=1.0)


@pytest.mark.parametrize(
    "name", ["MoMo", "MoMoAdam", "SignSPS", "MuonMoMo", "IAM", "IAMAdam", "ScheduleFreeSPS", "ScheduleFreePlus"]
)
@pytest.mark.parametrize("bound", [0.0, -2.0])
def test_a_run_that_has_come_to_its_bound_says_nothing(name, bound):
    """The model of the loss that these methods follow is then below the bound, by its rounding or its momentum."""
    w = nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = getattr(polyak, name)([w], lr=0.1, lower_bound=bound)
    for _ in range(300):
        optimizer.zero_grad()
        loss = (w - 3).relu().sum() + (w - 1).abs().clamp(min=0.01).sum() - 0.02 + bound
        loss.backward()
        optimizer.step(loss=loss)
    assert loss < bound + 0.1


@each_classic
def test_a_loss_that_stays_at_its_bound_is_the_end_of_a_training_that_has_moved(method):
    optimizer = method.build(fresh(), lr=1e-3)
    run(optimizer, 1, loss=1.0)
    run(optimizer, 2 * STEPS, loss=0.0)
    with warned(method.name, f"nothing has moved for {STEPS} steps running", "the loss .-1. was not above"):
        run(optimizer, STEPS, loss=-1.0)


def test_a_model_of_the_loss_that_stays_below_the_bound_is_named():
    optimizer = polyak.MoMo([nn.Parameter(torch.zeros(3))], momentum=0.9)
    run(optimizer, STEPS - 1, loss=-1.0)
    with warned("MoMo", r"since the method's model of the loss \(-0.8\) was not above lower_bound=0"):
        run(optimizer, 1, loss=1.0)


@each_method
def test_a_cap_of_zero_is_meant(method):
    optimizer = method.build(fresh(), lr=0.0)
    run(optimizer, 2 * STEPS, loss=1.0)


@each_classic
@pytest.mark.parametrize("device", ["meta", "device arithmetic"])
def test_nothing_is_read_where_the_host_would_wait(method, device, request):
    problem = Problem.make()
    if device == "device arithmetic":
        request.getfixturevalue("device_arithmetic")
    params = problem.params(torch.float32, "meta" if device == "meta" else "cpu")
    optimizer = method.build(params, lr=torch.full((), 0.1, device=params[0].device))
    run(optimizer, 2 * STEPS, loss=torch.full((), -1.0, device=params[0].device))


@each_method
def test_a_loss_without_any_gradient_is_told_once(method):
    optimizer = method.build(fresh())
    with warned(method.name, r"moves nothing", r"call loss.backward\(\)"):
        optimizer.step(loss=1.0)
    assert said(lambda: [optimizer.step(loss=1.0) for _ in range(3)]) == []


@each_method
def test_a_closure_that_computes_no_gradient_is_told_once(method):
    optimizer = method.build(fresh())
    with warned(method.name, r"step\(closure\) moves nothing", r"loss.backward\(\) in the closure"):
        optimizer.step(lambda: torch.tensor(1.0))
    assert said(lambda: [optimizer.step(lambda: 1.0) for _ in range(3)]) == []


@each_classic
def test_a_process_may_hold_no_gradient_if_the_whole_norm_is_given(method):
    method.build(fresh()).step(loss=1.0, grad_sq_norm=4.0)


# Schedules on an infinite cap

SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda t: 1 / (1 + t)),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda t: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 1),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 5]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, factor=0.9, total_iters=4),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, start_factor=0.5, total_iters=8),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.8),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, total_iters=2000),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=2000),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1),
}


@each_uncapped
@pytest.mark.parametrize("scheduler", SCHEDULERS.keys())
@pytest.mark.parametrize("kind", [float, torch.tensor], ids=["float", "tensor"])
def test_a_schedule_on_an_infinite_cap_is_told_once(method, scheduler, kind):
    optimizer = method.build(fresh(), lr=kind(math.inf))
    schedule = SCHEDULERS[scheduler](optimizer)
    arguments = (1.0,) if scheduler == "ReduceLROnPlateau" else ()

    def train() -> None:
        for _ in range(30):
            run(optimizer, 1, loss=1e-3)
            schedule.step(*arguments)

    (sentence,) = said(train)
    assert sentence.startswith(f"{method.name}: a schedule has no effect while lr=inf")
    assert sentence.endswith("give a finite lr.")


@each_uncapped
@pytest.mark.parametrize(("before", "after"), [(0, 3), (12, 10)])
def test_a_plateau_on_an_infinite_cap_is_told_in_short_runs_and_when_it_comes_late(method, before, after, monkeypatch):
    monkeypatch.setattr(Advice, "SOUGHT", SOUGHT)
    optimizer = method.build(fresh(), lr=math.inf)
    run(optimizer, before, loss=1e-3)
    schedule = lr_scheduler.ReduceLROnPlateau(optimizer)
    with warned(method.name, "a schedule has no effect while lr=inf"):
        run(optimizer, after, loss=1e-3)
    assert schedule.optimizer is optimizer


@each_uncapped
def test_a_schedule_on_an_infinite_cap_that_is_loaded_is_told(method):
    optimizer, saved = method.build(fresh(), lr=0.1), method.build(fresh(), lr=math.inf).state_dict()
    lr_scheduler.StepLR(optimizer, 1)
    run(optimizer, 1, loss=1e-3)
    saved["param_groups"][0]["initial_lr"] = math.inf
    optimizer.load_state_dict(saved)
    with warned(method.name, "a schedule has no effect while lr=inf"):
        run(optimizer, 1, loss=1e-3)


@each_classic
@pytest.mark.parametrize("scheduler", ["OneCycleLR", "CyclicLR"])
def test_a_schedule_that_sets_the_cap_itself_is_fine(method, scheduler):
    optimizer = method.build(fresh(), "nesterov", lr=math.inf)
    if scheduler == "OneCycleLR":
        schedule = lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=40)
    else:
        schedule = lr_scheduler.CyclicLR(optimizer, 0.01, 0.1, cycle_momentum=False)
    for _ in range(30):
        run(optimizer, 1, loss=1e-3)
        schedule.step()


@each_uncapped
def test_no_schedule_on_an_infinite_cap_is_fine(method):
    run(method.build(fresh(), lr=math.inf), 30, loss=1e-3)


# Options without effect

LATER: dict[str, tuple[Any, str]] = {
    "weight_decay": (0.5, "L2Ball"),
    "maximize": (True, "minimise the negated objective"),
    "nesterov": (True, "already Nesterov's"),
}


@each_undecayed
@pytest.mark.parametrize(("name", "value"), [(name, value) for name, (value, _) in LATER.items()])
@pytest.mark.parametrize("first_off", [False, True])
def test_an_option_that_no_method_has_is_told_once_when_it_is_set_later(method, name, value, first_off):
    optimizer = method.build(fresh(), lr=0.1)
    run(optimizer, 2, loss=1.0)
    if first_off:
        optimizer.param_groups[0][name] = type(value)(0)
        run(optimizer, 2, loss=1.0)
    optimizer.param_groups[0][name] = value
    with warned(method.name, f"{name}={value} in a parameter group has no effect", LATER[name][1]):
        run(optimizer, 1, loss=1.0)
    assert said(lambda: run(optimizer, 3, loss=1.0)) == []


@each_method
@pytest.mark.parametrize("when", ["at construction", "later"])
def test_an_option_of_another_method_is_told_once(method, when):
    others = {"c": 1.0, "gamma": 2.0, "adjusted_momentum": True, "steps_per_epoch": 3}
    name, value = next((name, value) for name, value in others.items() if name not in method.defaults)
    optimizer = method.build([{"params": fresh(), **({name: value} if when == "at construction" else {})}], lr=0.1)
    optimizer.param_groups[0][name] = value
    with warned(method.name, f"{name}={value} in a parameter group has no effect: it is an option of another method"):
        run(optimizer, 1, loss=1.0)
    assert said(lambda: run(optimizer, 3, loss=1.0)) == []


# Momentum without a cap


@each_classic
@pytest.mark.parametrize(("momentum", "factor"), [(0.9, "10"), (0.99, "100")])
def test_a_large_momentum_without_a_cap_is_told_once(method, momentum, factor):
    if method.name == "SmoothSPS":
        pytest.skip("its own cap grows, so that lr=inf leaves no step without one")
    with warned(method.name, f"momentum={momentum} multiplies every step by {factor} in all", "give a finite lr"):
        optimizer = method.build(fresh(), lr=math.inf, momentum=momentum)
    assert said(lambda: run(optimizer, 3, loss=1e-3)) == []
    method.build(fresh(), lr=1.0, momentum=momentum)
    method.build(fresh(), lr=math.inf, momentum=0.5)


def test_the_momentum_of_alig_plus_without_a_cap_is_told_at_its_default():
    with warned("ALIGPlus", "momentum=0.9", "lr=inf", "give a finite lr"):
        polyak.ALIGPlus(fresh(), lr=math.inf, samples=4, steps_per_epoch=2, epochs=5)


@each_method
def test_a_warning_points_to_the_line_of_the_caller(method):
    optimizer = method.build(fresh())
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        optimizer.step(loss=1.0)
    adapted = method.cls.__module__ == "adapters"
    assert found[0].filename == (inspect.getsourcefile(method.cls) if adapted else __file__)


def steps_with(optimizer, losses):
    """Make a step with each loss, whose gradients are those of a long slope; return the warnings."""
    with warnings.catch_warnings(record=True, action="always") as found:
        for loss in losses:
            for p in optimizer.param_groups[0]["params"]:
                p.grad = torch.ones_like(p)
            optimizer.step(loss=torch.tensor(loss))
    return [str(warning.message) for warning in found]


@each_method
@pytest.mark.parametrize(("bound", "high"), [(0.0, "4"), (1.0, "3"), (-2.0, "6")])
def test_a_loss_that_stays_far_above_the_first_one_is_said_once(method, bound, high):
    flat = {"rho": 0.0} if "rho" in method.defaults else {}
    optimizer = method.build([torch.nn.Parameter(torch.ones(3))], lr=1e-3, lower_bound=bound, **flat)
    assert steps_with(optimizer, [2.0] + 19 * [6.1]) == []
    (message,) = steps_with(optimizer, 100 * [7.0])
    for words in (method.cls.__name__, f"above {high} for 20 steps", "was 2 in the first", "smaller lr"):
        assert words in message


@pytest.mark.parametrize(
    "losses",
    [
        [2.0] + 5 * [*19 * [100.0], 3.9],  # it comes back
        [2.0] + 5 * [*19 * [100.0], math.nan],  # steps that are skipped
        100 * [2.0] + 19 * [1e9],
        [0.0] + 100 * [1.0],  # nothing to be measured by
        [math.inf] + 100 * [1.0],
        [2.0 + math.sin(t) for t in range(300)],
    ],
    ids=["spikes", "nan", "short", "from zero", "from inf", "noise"],
)
def test_a_loss_that_comes_back_is_not_said(losses):
    optimizer = polyak.ALIG([torch.nn.Parameter(torch.ones(3))], lr=1e-3)
    assert [message for message in steps_with(optimizer, losses) if "has stayed above" in message] == []


@pytest.mark.parametrize("copied", [copy.deepcopy, "state", lambda optimizer: pickle.loads(pickle.dumps(optimizer))])
def test_the_first_loss_of_a_resumed_run_is_no_measure(copied):
    first = polyak.ALIG([torch.nn.Parameter(torch.ones(3))], lr=1e-3)
    if copied == "state":
        resumed = polyak.ALIG([torch.nn.Parameter(torch.ones(3))], lr=1e-3)
        resumed.load_state_dict(first.state_dict())
    else:
        resumed = copied(first)
    assert steps_with(resumed, [1e-9] + 50 * [1.0]) == []


def test_a_network_that_sps_without_a_cap_blows_up_is_said_and_one_that_it_trains_is_not():
    for c, expected in ((0.1, 1), (1.0, 0)):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Linear(64, 5))
        x, y = torch.randn(128, 16), torch.randint(5, (128,))
        optimizer = polyak.SPS(model.parameters(), c=c)
        with warnings.catch_warnings(record=True, action="always") as found:
            for t in range(150):
                batch = torch.arange(16 * t, 16 * t + 16) % 128
                loss = torch.nn.functional.cross_entropy(model(x[batch]), y[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step(loss=loss)
        assert sum("has stayed above" in str(warning.message) for warning in found) == expected, c
