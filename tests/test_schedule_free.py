"""Schedule-free methods: what the parameters hold in which mode, the sentence of a wrong one, and exact resumption."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

import polyak
from catalogue import METHODS, each_backend
from observe import SMALL_BALLS, changed, refused, snapshot
from problem import Problem, flat

pytestmark = pytest.mark.filterwarnings(SMALL_BALLS)

FREE = tuple(method for method in METHODS if hasattr(method.cls, "eval"))
each_free = pytest.mark.parametrize("method", FREE, ids=lambda method: method.name)


def started(method, steps=7, **options):
    problem = Problem.make()
    params = problem.params()
    optimizer = method.build(params, "averaged", **{**method.trials[1], **options})
    problem.steps(optimizer, params, steps)
    return problem, params, optimizer


@each_free
@each_backend
@pytest.mark.parametrize("radius", [math.inf, 2.0])
def test_after_eval_the_parameters_are_the_average(method, backend, radius):
    ball = None if radius == math.inf else polyak.L2Ball(radius)
    problem, params, optimizer = started(method, 30, constraint=ball, **backend)
    y = flat(params)
    optimizer.eval()
    expected = method.transcribed(
        problem.start, problem.oracle, 30, radius=radius, momentum=0.8, **method.trials[1], averaged=True
    )
    assert np.abs(flat(params) - expected).max() <= 1e-12 * np.linalg.norm(expected)
    assert np.linalg.norm(flat(params)) <= radius * (1 + 1e-12)
    assert not np.array_equal(flat(params), y)
    optimizer.train()
    np.testing.assert_allclose(flat(params), y, rtol=1e-13, atol=1e-15)


@each_free
def test_a_mode_that_is_given_twice_changes_nothing_more(method):
    _, params, optimizer = started(method)
    optimizer.train()
    optimizer.eval()
    before = snapshot(optimizer)
    optimizer.eval()
    assert changed(before, snapshot(optimizer)) == set()
    optimizer.train()
    before = snapshot(optimizer)
    optimizer.train()
    assert changed(before, snapshot(optimizer)) == set()
    assert len(params) == 5


@each_free
def test_a_step_after_eval_is_refused_and_changes_nothing(method):
    problem, params, optimizer = started(method)
    optimizer.eval()
    optimizer.zero_grad()
    problem.loss(params).backward()
    before = snapshot(optimizer)
    with refused(RuntimeError, f"{method.name}.step() after eval()", "call optimizer.train() before the forward pass"):
        optimizer.step(loss=1.0)
    assert changed(before, snapshot(optimizer)) == set()
    optimizer.train()
    problem.steps(optimizer, params, 1)


@each_free
@pytest.mark.parametrize("evaluating", [True, False], ids=["eval", "train"])
def test_a_state_resumes_in_the_mode_in_which_it_was_saved(method, evaluating):
    problem, params, optimizer = started(method)
    if evaluating:
        optimizer.eval()
    twins = [torch.nn.Parameter(p.detach().clone()) for p in params]
    twin = method.build(twins, "averaged", **method.trials[1])
    twin.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for each, own in ((optimizer, params), (twin, twins)):
        each.train()
        problem.steps(each, own, 3, first=7)
        each.eval()
    assert np.array_equal(flat(params), flat(twins))
    assert twin.state_dict()["param_groups"][0]["train_mode"] is False


@each_free
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64], ids=str)
def test_the_modes_of_other_types(method, dtype):
    real = torch.tensor([1.0, -2.0, 0.5])
    p = torch.nn.Parameter(real.to(dtype))
    optimizer = method.build([p], "averaged", lr=0.1)
    for _ in range(3):
        p.grad = p.detach().clone()
        optimizer.step(loss=(p.detach().abs() ** 2).sum().real / 2)
    y = p.detach().clone()
    optimizer.eval()
    x = p.detach().clone()
    optimizer.train()
    assert not torch.equal(x, y)
    assert x.abs().float().norm() > y.abs().float().norm()  # the average of points that approach 0
    torch.testing.assert_close(p.detach(), y, rtol=2 * torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps)


@each_free
def test_a_parameter_without_a_gradient_is_the_same_in_both_modes_and_a_new_group_takes_the_mode(method):
    used, unused, new = (torch.nn.Parameter(torch.ones(2)) for _ in range(3))
    optimizer = method.build([used, unused], "averaged", lr=0.1)
    used.grad = torch.ones(2)
    optimizer.step(loss=1.0)
    optimizer.eval()
    optimizer.add_param_group({"params": [new]})
    assert [group["train_mode"] for group in optimizer.param_groups] == [False, False]
    assert unused.tolist() == new.tolist() == [1.0, 1.0]
    optimizer.train()
    assert [group["train_mode"] for group in optimizer.param_groups] == [True, True]


def test_other_methods_have_no_modes():
    assert not hasattr(polyak.ALIG, "train")
    assert not hasattr(polyak.ALIG, "eval")
    assert "train_mode" not in polyak.ALIG([torch.nn.Parameter(torch.ones(1))]).param_groups[0]
