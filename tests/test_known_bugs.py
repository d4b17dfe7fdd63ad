"""Defects of public implementations of these methods that ours must never have; each test says what it checks."""

import copy
import math
import random

import numpy as np
import pytest
import torch

import polyak
from catalogue import each_backend, each_capped_form, each_classic, each_classic_form, each_form, each_method
from observe import SMALL_BALLS
from problem import Problem

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
    optimizer = method.build([w], form, lr=min(lr, method.largest_lr), **backend)
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


# optax's polyak_sgd: `scaling` multiplies what it should divide where nothing is capped


@pytest.mark.parametrize("cls", [polyak.SPS, polyak.MomSPS, polyak.SmoothSPS], ids=lambda cls: cls.__name__)
def test_a_larger_c_makes_a_smaller_ratio_and_the_cap_scales_no_ratio(cls):
    required = {"steps_per_epoch": 1} if cls is polyak.SmoothSPS else {}
    ratios = []
    for lr, c in ((1.0, 0.5), (1.0, 1.0), (100.0, 1.0)):
        w, loss = _line(value=1.0, slope=4.0)
        optimizer = cls([w], lr=lr, c=c, **required)
        optimizer.step(loss=loss)
        ratios.append(optimizer.last_step().ratio.item())
    assert ratios == pytest.approx([0.5, 0.25, 0.25])


# MoMo: parameters without a gradient crash; optax's copy decays at another place and mixes the types of scalars


@each_backend
@each_form
def test_a_parameter_without_a_gradient_is_left_alone(method, form, backend):
    problem = Problem.make()
    params, idle = problem.params(), torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer, other = method.build([*params, idle], form, **backend), method.build(copies := problem.params(), form)
    x, y = problem.steps(optimizer, params, 3), problem.steps(other, copies, 3)
    assert torch.equal(idle, torch.ones_like(idle))
    assert idle not in optimizer.state or not any(v.any() for v in optimizer.state[idle].values())
    torch.testing.assert_close(torch.tensor(x), torch.tensor(y), rtol=1e-12, atol=1e-12)


def _alternating(optimizer, w, steps):
    """Minimise f_A = ½(2a + b − 1)² + ½(b − ½)² and f_B = ½(a − b + 2)² + ½a² in turn."""
    for t in range(steps):
        a, b = w
        loss = ((2 * a + b - 1) ** 2 + (b - 0.5) ** 2) / 2 if t % 2 == 0 else ((a - b + 2) ** 2 + a**2) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(loss=loss)
    return w.tolist()


@pytest.mark.parametrize(
    ("momentum", "steps", "point"),
    [
        (0.9, 1, (0.7486631016, -0.7553475936)),
        (0.9, 4, (0.3146284755, -0.4592438873)),
        (0.0, 2, (-0.1442418195, -0.0070449876)),
        (0.0, 4, (-0.3888419661, 0.6112032332)),
    ],
)
def test_momo_decays_where_its_authors_do_and_without_momentum_it_is_prox_sps(momentum, steps, point):
    w = torch.nn.Parameter(torch.tensor([1.5, -1.0], dtype=torch.float64))
    optimizer = polyak.MoMo([w], lr=1.0, weight_decay=0.1, momentum=momentum)
    assert _alternating(optimizer, w, steps) == pytest.approx(point, abs=5e-11)


@each_method
def test_scalars_are_wider_than_narrow_parameters(method):
    w = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimizer = method.build([w])
    w.grad = torch.full_like(w, 0.1)
    optimizer.step(loss=1.0)
    (group,) = optimizer.param_groups
    scalars = [group[name] for name in (*optimizer.memory(group), *optimizer.averages(), "step_size")]
    assert all(scalar.dtype == torch.float32 or not scalar.is_floating_point() for scalar in scalars)


# The package MomSPS: NaN after a gradient of zero, and the loss keeps its graph


@each_method
def test_a_gradient_of_zero_leaves_finite_weights(method):
    w = torch.nn.Parameter(torch.ones(3))
    optimizer = method.build([w])
    for scale in (0.0, 1.0, 0.0):
        w.grad = torch.full_like(w, scale)
        optimizer.step(loss=0.1)
    assert w.isfinite().all()
    assert optimizer.last_step().step_size.isfinite()


@each_method
def test_nothing_of_the_graph_of_the_loss_is_kept(method):
    problem = Problem.make()
    params = problem.params()
    optimizer = method.build(params)
    for t in range(2):
        optimizer.zero_grad()
        loss = problem.loss(params, t)
        loss.backward()
        optimizer.step(loss=loss)
    held = [*optimizer.last_step(), *(v for g in optimizer.param_groups for v in g.values()), *optimizer.state.values()]
    held += [value for state in optimizer.state.values() for value in state.values()]
    assert not any(value.requires_grad for value in held if isinstance(value, torch.Tensor))


# The package sps-safe: a crash for a negative bracket with ‖g‖² < M, weight decay ignored with averaging, NaN for M = 0


def _safe_after_a_move(**options):
    """Return a SafeSPS that has moved along a positive direction, and its parameter."""
    w = torch.nn.Parameter(torch.zeros(2))
    optimizer = polyak.SafeSPS([w], momentum=0.5, **options)
    w.grad = torch.full((2,), -1.0)
    optimizer.step(loss=2.0)
    return optimizer, w


def test_a_negative_bracket_below_the_floor_is_no_step():
    optimizer, w = _safe_after_a_move(floor=1e3)
    w.grad = torch.full((2,), -1.0)  # z lies ahead, so that f + ⟨g, z − x⟩ < 0
    optimizer.step(loss=0.0)
    assert optimizer.last_step().step_size == 0
    assert w.isfinite().all()


def test_weight_decay_counts_with_averaging():
    points = []
    for decay in (0.0, 0.1):
        optimizer, w = _safe_after_a_move(floor=1.0, weight_decay=decay)
        w.grad = torch.full((2,), -1.0)
        optimizer.step(loss=2.0)
        points.append(w.tolist())
    assert points[0] != points[1]


def test_no_floor_and_no_gradient_is_no_step():
    optimizer, w = _safe_after_a_move(floor=0.0)
    w.grad = torch.zeros(2)
    optimizer.step(loss=1.0)
    assert optimizer.last_step().step_size == 0
    assert w.isfinite().all()
    w = torch.nn.Parameter(torch.zeros(2))
    optimizer = polyak.SafeSPS([w], floor=0.0)
    w.grad = torch.zeros(2)
    optimizer.step(loss=1.0)
    assert torch.equal(w, torch.zeros(2))


@pytest.mark.parametrize(("slope", "gamma"), [(4.0, 0.5), (0.01, 2.0)])
def test_safe_sps_is_the_smaller_of_two_ratios(slope, gamma):
    w, loss = _line(value=2.0, slope=slope)
    optimizer = polyak.SafeSPS([w], floor=1.0)
    optimizer.step(loss=loss)
    assert optimizer.last_step().step_size == pytest.approx(min(2.0 / slope, 2.0 / 1.0)) == pytest.approx(gamma)


# ScheduleFree+: the average of the norm divides by 1 − βᵏ twice


def test_the_average_of_a_constant_norm_is_that_norm():
    w = torch.nn.Parameter(torch.zeros(3))
    optimizer, ratios = polyak.ScheduleFreePlus([w], norm_beta=0.99, momentum=0.0, lr=1e-6), []
    for _ in range(200):
        w.grad = torch.ones(3)
        optimizer.step(loss=1.0)
        ratios.append(optimizer.last_step().ratio.item())
    assert ratios == pytest.approx([ratios[0]] * 200, rel=1e-3)


# GPT-opt's NESGD: eps is ignored


def test_the_eps_of_muon_counts():
    ratios = []
    for eps in (1e-8, 10.0):
        w = torch.nn.Parameter(torch.ones(3))
        optimizer = polyak.MuonMoMo([w], eps=eps, momentum=0.0)
        w.grad = torch.full((3,), 0.1)
        optimizer.step(loss=1e-4)
        ratios.append(optimizer.last_step().ratio.item())
    assert ratios[1] > 2 * ratios[0]  # a larger D makes the dual norm smaller


# IAM as released: every tensor counts steps, and a bound of 0.0 is taken for none


def test_steps_are_counted_once_for_all_tensors():
    problem = Problem.make()
    params = problem.params()
    optimizer = polyak.IAM([{"params": params[:2]}, {"params": params[2:]}], momentum=None)
    problem.steps(optimizer, params, 3)
    assert [int(group["steps"]) for group in optimizer.param_groups] == [3, 3]


@each_method
@pytest.mark.parametrize("zero", [0.0, 0, torch.tensor(0.0)], ids=repr)
def test_a_bound_of_zero_is_a_bound(method, zero):
    w, loss = _line(value=1.0, slope=4.0)
    optimizer = method.build([w], lower_bound=0.5)
    optimizer.step(loss=loss, lower_bound=zero)
    twin, loss = _line(value=1.0, slope=4.0)
    other = method.build([twin], lower_bound=0.0)
    other.step(loss=loss)
    assert optimizer.last_step().ratio == other.last_step().ratio
    assert torch.equal(w, twin)


# SLS, ada_sls, PoNoS and BORAT: random numbers are drawn anew in every step; the network runs twice


@each_method
def test_a_step_draws_no_random_number(method):
    problem = Problem.make()
    params = problem.params()
    optimizer = method.build(params)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    problem.steps(optimizer, params, 2)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert random.getstate() == before[2]


@each_method
def test_every_group_measures_the_loss_of_this_step(method):
    problem = Problem.make()
    params = problem.params()
    optimizer = method.build([{"params": [p]} for p in params])
    for t in range(2):
        problem.steps(optimizer, params, 1, first=t)
        losses = {float(optimizer.last_step(i).loss) for i in range(len(params))}
        assert len(losses) == 1
    w, _ = _line()
    calls = []
    alone = polyak.ALIG([w])
    alone.step(lambda: calls.append(1) or torch.tensor(1.0))
    assert calls == [1]


# The notebooks of DecSPS: 1e-4 is added inside the norm


def test_no_constant_is_added_to_a_small_norm():
    w, loss = _line(value=1e-6, slope=1e-6)
    optimizer = polyak.DecSPS([w], lr=math.inf)
    optimizer.step(loss=loss)
    assert optimizer.last_step().ratio == pytest.approx(1.0)


# SPS with a preconditioner by the authors of stochastic_polyak: the momentum is overwritten


@pytest.mark.parametrize("cls", [polyak.SPS, polyak.MomSPS, polyak.SafeSPS, polyak.IAM], ids=lambda cls: cls.__name__)
def test_the_momentum_remembers_every_step(cls):
    w = torch.nn.Parameter(torch.zeros(1))
    optimizer = cls([w], lr=1.0, momentum=0.5)
    for gradient in (1.0, 0.0, 0.0):
        w.grad = torch.tensor([gradient])
        optimizer.step(loss=1e3 if gradient else 0.0)
    factor = 1.0 if cls is polyak.SPS else 0.5  # the heavy ball takes (1 − μ)γ
    assert optimizer.state[w]["momentum_buffer"].item() == pytest.approx(-factor * 0.5**2)
