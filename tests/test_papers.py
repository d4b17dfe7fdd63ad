"""Every method is its paper's algorithm: 100 steps equal the NumPy transcription to 1e-12 of the size of x."""

import inspect
import math
from itertools import pairwise

import numpy as np
import pytest
import torch

import papers
import polyak
from catalogue import METHODS, MOMENTUM, each_backend, each_form
from observe import SMALL_BALLS
from problem import Problem

pytestmark = pytest.mark.filterwarnings(SMALL_BALLS)

STEPS = 100
INACTIVE, ACTIVE = 10.0, 2.0
TRIALS = range(max(len(method.trials) for method in METHODS))
CASES = [(trial, math.inf) for trial in TRIALS] + [(1, INACTIVE)] + [(trial, ACTIVE) for trial in TRIALS[1:]]


def _close(x: np.ndarray, expected: np.ndarray) -> bool:
    return bool(np.abs(x - expected).max() <= 1e-12 * np.linalg.norm(expected))


def _ball(radius: float) -> polyak.L2Ball | None:
    return None if radius == math.inf else polyak.L2Ball(radius)


@each_backend
@each_form
@pytest.mark.parametrize(("trial", "radius"), CASES)
def test_a_method_follows_its_paper(method, form, backend, trial, radius):
    problem, options = Problem.make(), {**method.trials[trial], **MOMENTUM[form]}
    params = problem.params()
    optimizer = method.build(params, **options, constraint=_ball(radius), **backend)
    x = problem.steps(optimizer, params, STEPS)
    assert _close(x, method.transcribed(problem.start, problem.oracle, STEPS, radius=radius, **options))


@pytest.mark.usefixtures("device_arithmetic")
@each_backend
@each_form
@pytest.mark.parametrize("radius", [INACTIVE, ACTIVE])
def test_the_masked_arithmetic_of_a_device_follows_the_paper(method, form, backend, radius):
    test_a_method_follows_its_paper(method, form, backend, 1, radius)


@each_backend
@each_form
@pytest.mark.parametrize("radius", [math.inf, ACTIVE])
def test_groups_with_caps_of_their_own_follow_the_paper_with_one_cap_per_coordinate(method, form, backend, radius):
    problem, options = Problem.make(), {**method.trials[0], **MOMENTUM[form]}
    params, lrs = problem.params(), (0.5, 2.0, 1.0 if method.factor else math.inf)
    parts = [params[:1], params[1:4], params[4:]]
    groups = [{"params": part, "lr": lr} for part, lr in zip(parts, lrs, strict=True)]
    optimizer = method.build(groups, **{**options, "lr": 1.0}, constraint=_ball(radius), **backend)
    x = problem.steps(optimizer, params, method.uncapped_steps)
    caps = np.repeat(lrs, [sum(p.numel() for p in part) for part in parts])
    options["lr"] = caps
    expected = method.transcribed(problem.start, problem.oracle, method.uncapped_steps, radius=radius, **options)
    assert _close(x, expected)


@each_form
def test_the_trials_meet_both_sides_of_every_minimum(method, form):
    problem, capped = Problem.make(), set()
    for trial in method.trials:
        params = problem.params()
        optimizer = method.build(params, form, **trial)
        for t in range(STEPS):
            problem.steps(optimizer, params, 1, first=t)
            capped.add(bool(optimizer.last_step().capped))
    assert capped == ({True, False} if method.hard_cap else {False})


def test_the_active_ball_is_active_and_the_inactive_one_is_not():
    norms = []
    for radius in (math.inf, INACTIVE, ACTIVE):
        problem = Problem.make()
        params = problem.params()
        optimizer = polyak.ALIG(params, lr=2.0, constraint=_ball(radius))
        norms.append(np.linalg.norm(problem.steps(optimizer, params, STEPS)))
    assert norms[0] == norms[1] > norms[2] == pytest.approx(ACTIVE)


def test_the_gradient_in_numpy_is_that_of_the_loss_in_torch():
    problem = Problem.make(noise=0.5)
    for t in range(4):
        params = problem.params()
        loss = problem.loss(params, t)
        gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, params)])
        value, expected = problem.oracle(problem.start, t)
        np.testing.assert_allclose(loss.item(), value, rtol=1e-14)
        np.testing.assert_allclose(gradient, expected, rtol=1e-13)


@pytest.mark.parametrize("name", papers.__all__)
def test_a_transcription_is_short_and_does_not_know_the_library(name):
    function = getattr(papers, name)
    assert len(inspect.getsource(function).splitlines()) <= 30
    assert not any(word in inspect.getsource(inspect.getmodule(function)) for word in ("torch", "polyak."))


def test_every_option_of_every_formula_takes_several_values_in_the_trials():
    formula_free = {"foreach", "momentum", "adjusted_momentum", "maximize"}
    for method in METHODS:
        varied = {name for trial in method.trials for name in trial} | set(method.required)
        assert set(method.symbols) - formula_free - {"radius"} <= varied, method.name
        assert any(a != b for a, b in pairwise(method.trials)), method.name
