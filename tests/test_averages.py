"""Averages that methods keep while they measure: one model for all groups, exact in copies, refused in parts."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

import polyak
from catalogue import METHODS, each_backend
from observe import changed, refused, snapshot
from problem import Problem, flat, take_step

AVERAGING = tuple(method for method in METHODS if method.cls.averages is not polyak.PolyakOptimizer.averages)
MODELLING = [method for method in METHODS if method.name in ("MoMo", "MoMoAdam", "SignSPS", "MuonMoMo")]
PRECONDITIONED = ("MoMoAdam", "NGNMD", "IAMAdam", "ScheduleFreeAdamSPS", "ScheduleFreePlus", "MuonMoMo")
each_averaging = pytest.mark.parametrize("method", AVERAGING, ids=lambda method: method.name)


@each_averaging
def test_all_groups_share_the_averages(method):
    problem = Problem.make()
    params = problem.params()
    optimizer = method.build([{"params": [p]} for p in params], **method.trials[0])
    problem.steps(optimizer, params, 2)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    problem.steps(optimizer, params, 2, first=2)
    for name in optimizer.averages():
        assert len({id(group[name]) for group in optimizer.param_groups}) == 1
    assert int(optimizer.param_groups[-1].get("steps", 4)) == 4


@each_averaging
def test_the_averages_outlive_the_first_group(method):
    problem = Problem.make()
    params = problem.params()
    optimizer = method.build([{"params": params[:2]}, {"params": params[2:]}], **method.trials[0])
    problem.steps(optimizer, params, 3)
    del optimizer.param_groups[0]
    problem.steps(optimizer, params, 1, first=3)
    assert int(optimizer.param_groups[0].get("steps", 4)) == 4


@pytest.mark.parametrize("method", [m for m in METHODS if not m.cls.takes_norm], ids=lambda method: method.name)
def test_the_norm_alone_is_not_enough_for_a_method_that_needs_more_of_the_gradient(method):
    problem = Problem.make()
    params = problem.params()
    optimizer = method.build(params)
    problem.loss(params).backward()
    before = snapshot(optimizer)
    with refused(RuntimeError, method.name, "needs more of the whole gradient than grad_sq_norm"):
        optimizer.step(loss=1.0, grad_sq_norm=1.0)
    assert {name for name in changed(before, snapshot(optimizer)) if name in before} == set()


@pytest.mark.parametrize("where", ["host", "device"])
@pytest.mark.filterwarnings("ignore:.*step.loss=loss. moves nothing")
def test_a_step_without_gradients_passes_where_the_momentum_depends_on_the_step(where, request):
    if where == "device":
        request.getfixturevalue("device_arithmetic")
    for cls in (polyak.IAM, polyak.IAMAdam):
        optimizer = cls(Problem.make().params(), momentum=None)
        before = snapshot(optimizer)
        optimizer.step(loss=1.0)
        assert changed(before, snapshot(optimizer)) == set()


@pytest.mark.parametrize("cls", [polyak.MoMo, polyak.MoMoAdam, polyak.NGNMD], ids=lambda cls: cls.__name__)
def test_a_decay_that_lr_multiplies_needs_a_finite_lr(cls):
    params = Problem.make().params()
    with refused(ValueError, cls.__name__, "weight_decay needs a finite lr"):
        cls(params, lr=math.inf, weight_decay=0.1)
    with refused(ValueError, cls.__name__, "weight_decay needs a finite lr"):
        cls([{"params": params, "lr": math.inf}], weight_decay=0.1)
    cls(params, lr=math.inf)


def test_a_group_may_have_a_weight_decay_of_its_own():
    for cls, key in ((polyak.MoMo, 0.1), (polyak.MoMoAdam, 0.1), (polyak.NGNMD, 0.1), (polyak.SafeSPS, 0.1)):
        a, b = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
        optimizer = cls([{"params": [a], "weight_decay": key}, {"params": [b]}], lr=0.1)
        assert [group["weight_decay"] for group in optimizer.param_groups] == [key, 0.0]
        a.grad, b.grad = torch.full((3,), 1e-3), torch.full((3,), 1e-3)
        optimizer.step(loss=1.0)
        assert (a < b).all()


@pytest.mark.parametrize("cls", [polyak.MoMo, polyak.MoMoAdam], ids=lambda cls: cls.__name__)
def test_a_learned_bound_rises_to_about_the_loss_that_can_be_reached(cls):
    problem = Problem.make(noise=0.5)
    params = problem.params()
    optimizer = cls(params, lr=0.05, learn_lower_bound=True, lower_bound=-1.0)
    problem.steps(optimizer, params, 300)
    learned = float(optimizer.param_groups[0]["learned_lower_bound"])
    reached = sum(float(problem.loss(params, t).detach()) for t in range(3)) / 3
    assert 0.5 * reached < learned < 1.5 * reached
    optimizer.zero_grad()
    problem.loss(params).backward()
    before = snapshot(optimizer)
    optimizer.step(loss=math.nan)
    assert {name.split()[0] for name in changed(before, snapshot(optimizer))} <= {"skipped_steps", "step_size"}


def test_a_method_without_options_of_its_own_may_average_too():
    class Averaged(polyak.PolyakOptimizer):
        """Half of the gradient, half of the last one."""

        def __init__(self, params, lr=1.0):
            super().__init__(params, lr)

        def averages(self):
            return {"loss_average": 0.0}

        def linearize(self, line, parts, averages):
            averages["loss_average"] = 0.5 * averages["loss_average"] + 0.5 * line.value
            return line._replace(value=averages["loss_average"])

        def step_size(self, line, group):
            return line.gap / line.slope, group["lr"]

    problem = Problem.make()
    params, expected = problem.params(), 0.0
    optimizer = Averaged(params)
    for t in range(3):
        expected = 0.5 * expected + 0.5 * float(problem.loss(params, t).detach())
        problem.steps(optimizer, params, 1, first=t)
    assert float(optimizer.param_groups[0]["loss_average"]) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("options", [{"momentum": None}, {"momentum": 0.0}], ids=str)
def test_the_first_step_of_a_large_tensor_without_momentum_yet(options):
    """A kernel of torch's SGD, which takes large tensors on the CPU, refuses a buffer with a momentum of 0."""
    ends = []
    for backend in ({}, {"foreach": False}):
        w = torch.nn.Parameter(torch.ones(100_000))
        w.grad = torch.full_like(w, 0.01)
        polyak.IAM([w], **options, **backend).step(loss=1.0)
        ends.append(w.detach().clone())
    torch.testing.assert_close(*ends)
    assert ends[0].max() < 1.0


def with_gaps(problem, params, optimizer, t, shift):
    """Make a step in which two of the tensors have no gradient, as experts of a mixture that saw no token."""

    def closure():
        optimizer.zero_grad()
        loss = problem.loss([p - shift for p in params], t)
        loss.backward()
        for i in (t % len(params), (t + 1) % len(params)) if t else ():
            params[i].grad = None
        return loss

    take_step(optimizer, closure)


@pytest.mark.parametrize("where", ["host", "device"])
@pytest.mark.parametrize("method", MODELLING, ids=lambda method: method.name)
def test_a_gradient_that_is_missing_now_and_then_leaves_the_model_of_the_loss_as_it_is(method, where, request):
    """The origin of the parameters is of no importance, so ⟨d, x⟩ of no tensor may be left out."""
    if where == "device":
        request.getfixturevalue("device_arithmetic")
    ends, options = [], {"lr": 1e3} | ({"norm": "adam", "eps": 1.0} if method.name == "MuonMoMo" else {})
    for shift in (0.0, 3.0):
        problem = Problem.make()
        params = [torch.nn.Parameter(p.detach() + shift) for p in problem.params()]
        optimizer = method.build([{"params": params[:3]}, {"params": params[3:]}], "averaged", **options)
        for t in range(6):
            with_gaps(problem, params, optimizer, t, shift)
        ends.append(torch.cat([p.detach().reshape(-1) - shift for p in params]))
    torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-10)


def test_a_missing_gradient_counts_as_the_average_of_those_before():
    problem, beta = Problem.make(), 0.8
    params = problem.params()
    optimizer = polyak.MoMo(params, lr=0.7, momentum=beta)
    ends = np.cumsum([p.numel() for p in params])
    x, d, f_bar, p_bar = problem.start.copy(), np.zeros_like(problem.start), 0.0, 0.0
    for t in range(20):
        with_gaps(problem, params, optimizer, t, 0.0)
        f, g = problem.oracle(x, t)
        present = np.ones(x.size, dtype=bool)
        for i in (t % 5, (t + 1) % 5) if t else ():
            present[ends[i] - params[i].numel() : ends[i]] = False
        g, b = np.where(present, g, d), beta if t else 0.0
        d, f_bar, p_bar = b * d + (1 - b) * g, b * f_bar + (1 - b) * f, b * p_bar + (1 - b) * (g @ x)
        tau = min(0.7, max(f_bar + d @ x - p_bar, 0) / np.sum(d[present] ** 2))
        x = x - np.where(present, tau * d, 0.0)
    np.testing.assert_allclose(flat(params), x, rtol=1e-11)


@pytest.mark.parametrize(
    "name", ["MoMoAdam", "NGNMD", "IAMAdam", "ScheduleFreeAdamSPS", "ScheduleFreePlus", "MuonMoMo"]
)
@pytest.mark.parametrize("numbers", [4, 1 << 14])
@each_backend
def test_without_eps_a_coordinate_without_a_gradient_stays_and_the_others_move(name, numbers, backend):
    """0/0 counts as 0 in Adam's norm."""
    ends = []
    for eps in (0.0, 1e-30):
        p = torch.nn.Parameter(torch.linspace(-1.0, 1.0, numbers))
        given = {"norm": "adam"} if name == "MuonMoMo" else {}
        optimizer = getattr(polyak, name)([p], lr=0.1, eps=eps, **given, **backend)
        start, here = p.detach().clone(), torch.arange(numbers) % 2 == 0
        for _ in range(3):
            p.grad = torch.where(here, p.detach(), 0.0)
            optimizer.step(loss=p.grad.square().sum() / 2)
            assert not optimizer.last_step().skipped
        moved = (p.detach() != start) & (start != 0)
        assert torch.equal(moved, here)
        ends.append(p.detach())
    torch.testing.assert_close(*ends)
