"""Defects of public implementations of these methods that ours must never have; each test says what it checks."""

import copy
import math

import pytest
import torch

import polyak
from catalogue import Problem, each_backend, each_capped_form, each_classic, each_classic_form, each_form, each_method
from observe import SMALL_BALLS

pytestmark = pytest.mark.filterwarnings(SMALL_BALLS)


def _line(value=1.0, slope=4.0):
    """Return a parameter with a gradient, and a loss that need not belong to it."""
    w = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    w.grad = torch.tensor([math.sqrt(slope / 2)] * 2)
    return w, torch.tensor(value)


# The authors' smooth SPS: γ is 0 for ever after a batch without gradient; f* and the cap are ignored; negative losses


@pytest.mark.parametrize(("value", "slope"), [(1.0, 0.0), (0.0, 4.0), (0.0, 0.0), (-1.0, 4.0), (math.nan, 4.0)])
def test_a_batch_without_progress_does_not_freeze_the_growing_cap(value, slope):
    w, loss = _line(value, slope)
    optimizer = polyak.SmoothSPS([w], steps_per_epoch=1, init_step_size=1.0)
    optimizer.step(loss=loss)
    assert optimizer.param_groups[0]["step_size"] == 0
    w.grad = torch.ones(2) * 1e-3
    optimizer.step(loss=1.0)
    assert optimizer.param_groups[0]["step_size"] == 2.0  # γ = τ · γ_{−1}: the cap did not move


def test_smooth_sps_measures_above_the_bound_and_stays_below_the_constant_cap():
    w, loss = _line(value=5.0, slope=4.0)
    optimizer = polyak.SmoothSPS([w], lr=0.3, steps_per_epoch=1, lower_bound=4.5, eps=0.0)
    optimizer.step(loss=loss)
    assert optimizer.last_step().ratio == pytest.approx(0.5 / (0.5 * 4.0))
    assert optimizer.param_groups[0]["step_size"] == pytest.approx(0.25)
    optimizer.step(loss=loss + 10)
    assert optimizer.param_groups[0]["step_size"] == pytest.approx(0.3)


@pytest.mark.parametrize("lr", [0.1, math.inf])
@each_backend
@each_form
def test_a_loss_below_its_bound_never_climbs(method, form, backend, lr):
    w, loss = _line(value=-3.0)
    optimizer = method.build([w], form, lr=lr, **backend)
    optimizer.step(loss=loss)
    assert torch.equal(w, torch.tensor([1.0, -2.0]))
    assert optimizer.last_step().step_size == 0


# The authors' SPS: dicts of parameter groups crash, and the gradients are changed; the authors' ALI-G: no schedulers,
# no groups added later, a state_dict without the state, the loss read by the host at every step


@each_backend
@each_form
def test_a_step_leaves_the_gradients_alone(method, form, backend):
    problem = Problem.make()
    params = problem.params()
    optimizer = method.build([{"params": params[:2]}, {"params": params[2:]}], form, **backend)
    for t in range(2):
        optimizer.zero_grad()
        loss = problem.loss(params, t)
        loss.backward()
        gradients = [p.grad.clone() for p in params]
        optimizer.step(loss=loss)
        assert all(torch.equal(p.grad, g) for p, g in zip(params, gradients, strict=True))


@each_capped_form
def test_a_scheduler_moves_the_cap(method, form):
    problem = Problem.make()
    params = problem.params()
    optimizer = method.build(params, form, lr=0.1, lower_bound=-1e6)  # the cap always binds
    scheduler, used = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5), []
    for t in range(3):
        problem.steps(optimizer, params, 1, first=t)
        scheduler.step()
        used.append(optimizer.last_step().step_size.item())
    assert used == pytest.approx([0.1, 0.05, 0.025], rel=1e-6 if method.hard_cap else 1e-2)


@each_backend
@each_classic_form
def test_a_group_added_later_takes_part_in_the_next_step(method, form, backend):
    problem = Problem.make()
    params = problem.params()
    optimizer = method.build(params[:3], form, **backend)
    problem.steps(optimizer, params, 2)
    before = [p.detach().clone() for p in params]
    optimizer.add_param_group({"params": params[3:]})
    problem.steps(optimizer, params, 1)
    whole = sum(p.grad.square().sum() for p in params)
    assert optimizer.last_step(1).grad_sq_norm == pytest.approx(whole.item())
    assert all(not torch.equal(p, old) for p, old in zip(params, before, strict=True) if p.numel())


@each_backend
@each_form
def test_the_state_of_a_run_goes_on_in_another_optimizer(method, form, backend):
    problem, options = Problem.make(), {**method.trials[1], **backend}
    params, copies = problem.params(), problem.params()
    optimizer, other = method.build(params, form, **options), method.build(copies, form)
    problem.steps(optimizer, params, 3)
    for w, p in zip(copies, params, strict=True):
        w.data.copy_(p.data)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    expected = problem.steps(optimizer, params, 3, first=3)
    assert (problem.steps(other, copies, 3, first=3) == expected).all()


# ALI-G of another package: another δ, the norm and the projection over each group alone, `maximize` in part of the step


def test_delta_is_added_to_the_squared_norm():
    w, loss = _line(value=1.0, slope=1e-6)
    optimizer = polyak.ALIG([w], lr=math.inf)
    optimizer.step(loss=loss)
    assert optimizer.last_step().step_size == pytest.approx(1 / (1e-6 + 1e-5), rel=1e-5)


@each_backend
@each_classic
def test_the_norm_and_the_projection_are_over_all_groups(method, backend):
    problem = Problem.make()
    params = problem.params()
    groups = [{"params": [p]} for p in params]
    optimizer = method.build(groups, constraint=polyak.L2Ball(1.0), **backend)
    assert sum(p.square().sum() for p in params).item() == pytest.approx(1.0)
    problem.steps(optimizer, params, 1)
    whole = sum(p.grad.square().sum() for p in params).item()
    assert [optimizer.last_step(i).grad_sq_norm.item() for i in range(len(groups))] == [pytest.approx(whole)] * len(
        groups
    )
    assert sum(p.square().sum() for p in params).item() <= 1 + 1e-12


@each_method
def test_maximize_is_refused(method):
    with pytest.raises(TypeError, match="maximize"):
        method.build(Problem.make().params(), maximize=True)
    with pytest.raises(ValueError, match="maximize"):
        method.build([{"params": Problem.make().params(), "maximize": True}])
