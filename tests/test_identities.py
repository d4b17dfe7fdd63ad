"""Equalities between methods, and laws every method obeys, in float64."""

import math

import numpy as np
import pytest
import torch

import polyak
from catalogue import METHODS, each_backend, each_classic_form, each_form, each_method, each_scale_free_form
from observe import SMALL_BALLS
from problem import Problem, flat

pytestmark = pytest.mark.filterwarnings(SMALL_BALLS)

STEPS = 20


def _same(x: np.ndarray, expected: np.ndarray) -> None:
    assert np.abs(x - expected).max() <= 1e-12 * np.linalg.norm(expected)


# (one method, its options), (another, its options): the same trajectory
EQUAL = {
    "MoMo without momentum is SPS with c = 1": (
        (polyak.MoMo, {"lr": 2.0, "momentum": 0.0}),
        (polyak.SPS, {"lr": 2.0, "c": 1.0, "eps": 0.0}),
    ),
    "NGN without a cap is SPS with c = 1/2": (
        (polyak.NGN, {"lr": math.inf}),
        (polyak.SPS, {"c": 0.5, "eps": 0.0}),
    ),
    "SafeSPS without a floor and with momentum is IAM": (
        (polyak.SafeSPS, {"lr": 2.0, "floor": 0.0, "momentum": 0.4}),
        (polyak.IAM, {"lr": 2.0, "momentum": 0.4}),
    ),
    "so it is without a cap": (
        (polyak.SafeSPS, {"lr": math.inf, "floor": 0.0, "momentum": 0.4}),
        (polyak.IAM, {"lr": math.inf, "momentum": 0.4}),
    ),
    "MomSPS without momentum is SPS": (
        (polyak.MomSPS, {"lr": 2.0, "momentum": 0.0}),
        (polyak.SPS, {"lr": 2.0, "c": 1.0, "eps": 0.0}),
    ),
    "SmoothMomSPS whose cap grows at once is MomSPS": (
        (polyak.SmoothMomSPS, {"lr": 2.0, "momentum": 0.4, "steps_per_epoch": 1, "gamma": 1e9}),
        (polyak.MomSPS, {"lr": 2.0, "momentum": 0.4}),
    ),
    "ALI-G with δ = 0 is SPS with c = 1": (
        (polyak.ALIG, {"lr": 2.0, "eps": 0.0}),
        (polyak.SPS, {"lr": 2.0, "eps": 0.0, "c": 1.0}),
    ),
    "and ALI-G without a cap": (
        (polyak.ALIG, {"lr": math.inf, "eps": 0.0}),
        (polyak.SPS, {"eps": 0.0, "c": 1.0}),
    ),
    "and with momentum": (
        (polyak.ALIG, {"lr": 2.0, "eps": 0.0, "momentum": 0.4}),
        (polyak.SPS, {"lr": 2.0, "eps": 0.0, "c": 1.0, "momentum": 0.4}),
    ),
    "and above another bound": (
        (polyak.ALIG, {"lr": 2.0, "eps": 0.0, "lower_bound": -0.01}),
        (polyak.SPS, {"lr": 2.0, "eps": 0.0, "c": 1.0, "lower_bound": -0.01}),
    ),
    "smooth SPS whose cap grows at once is SPS": (
        (polyak.SmoothSPS, {"lr": 2.0, "c": 1.0, "steps_per_epoch": 1, "gamma": 1e9}),
        (polyak.SPS, {"lr": 2.0, "c": 1.0}),
    ),
}


@each_backend
@pytest.mark.parametrize(("one", "other"), EQUAL.values(), ids=EQUAL.keys())
def test_two_methods_are_the_same(one, other, backend):
    problem, points = Problem.make(), []
    for cls, options in (one, other):
        params = problem.params()
        points.append(problem.steps(cls(params, **options, **backend), params, STEPS))
    _same(*points)


@each_backend
@each_classic_form
@pytest.mark.parametrize("lr", [0.05, 0.3])
def test_with_a_cap_that_always_binds_a_method_is_sgd_with_nesterov_momentum(method, form, backend, lr):
    problem, params, sgd_params = Problem.make(), (make := Problem.make().params)(), make()
    optimizer = method.build(params, form, lr=lr, lower_bound=-1e6, **backend)
    momentum = optimizer.param_groups[0]["momentum"]
    sgd = torch.optim.SGD(sgd_params, lr=lr, momentum=momentum, nesterov=momentum > 0)
    for t in range(STEPS):
        problem.steps(optimizer, params, 1, first=t)
        assert optimizer.last_step().capped
        sgd.zero_grad()
        problem.loss(sgd_params, t).backward()
        sgd.step()
    _same(flat(params), flat(sgd_params))


def _sgd_of(cls, options, **sgd):
    """Run a method whose cap always binds beside one of torch's optimizers, and return both points."""
    problem, params, torch_params = Problem.make(), Problem.make().params(), Problem.make().params()
    optimizer, twin = cls(params, lower_bound=-1e6, **options), sgd.pop("rival")(torch_params, foreach=False, **sgd)
    for t in range(STEPS):
        problem.steps(optimizer, params, 1, first=t)
        assert optimizer.last_step().capped
        twin.zero_grad()
        problem.loss(torch_params, t).backward()
        twin.step()
    return flat(params), flat(torch_params)


@each_backend
def test_momo_whose_cap_binds_is_sgd_with_dampening(backend):
    _same(*_sgd_of(polyak.MoMo, {"lr": 0.3, **backend}, rival=torch.optim.SGD, lr=0.3, momentum=0.9, dampening=0.9))


@pytest.mark.parametrize("momentum", [0.0, 0.4])
@pytest.mark.parametrize("cls", [polyak.MomSPS, polyak.SafeSPS, polyak.IAM], ids=lambda cls: cls.__name__)
def test_a_heavy_ball_whose_cap_binds_is_sgd_with_its_step_times_one_minus_momentum(cls, momentum):
    sgd = {"rival": torch.optim.SGD, "lr": 0.3 * (1 - momentum), "momentum": momentum}
    _same(*_sgd_of(cls, {"lr": 0.3, "momentum": momentum}, **sgd))


@pytest.mark.parametrize("foreach", [None, False, True])
def test_momo_adam_whose_cap_binds_is_adam_bit_for_bit(foreach):
    x, expected = _sgd_of(polyak.MoMoAdam, {"lr": 0.01, "foreach": foreach}, rival=torch.optim.Adam, lr=0.01)
    assert (x == expected).all()
    decay = {"weight_decay": 0.1}
    x, expected = _sgd_of(
        polyak.MoMoAdam,
        {"lr": 0.01, "foreach": foreach, "decoupled_weight_decay": True, **decay},
        rival=torch.optim.AdamW,
        lr=0.01,
        **decay,
    )
    assert (x == expected).all()


def test_schedule_free_sps_at_the_average_itself_is_iam():
    """With β → 1, y is the average x, whose weights 1/(t + 1) are those of λ_t = t."""
    points = []
    for cls, options in ((polyak.ScheduleFreeSPS, {"momentum": 1 - 2.0**-40}), (polyak.IAM, {"momentum": None})):
        problem = Problem.make()
        params = problem.params()
        points.append(problem.steps(cls(params, lr=2.0, **options), params, STEPS))
    np.testing.assert_allclose(*points, rtol=1e-9)


def test_scaling_the_loss_leaves_the_step_sizes_and_the_points_of_momo_adam():
    """Without a cap and with ε = 0 the norm of Adam takes the scale out of the gradient."""
    method = next(method for method in METHODS if method.cls is polyak.MoMoAdam)
    options = {"lr": math.inf, "eps": 0.0, "betas": (0.5, 0.9)}
    x, γ = _run(method, "none", options)
    for scale in (1e-6, 3.0, 1e6):
        x_scaled, γ_scaled = _run(method, "none", options, scale)
        _same(x_scaled, x)
        np.testing.assert_allclose(γ_scaled, γ, rtol=1e-9)


SPLITS = {
    "one group for each tensor": lambda params: [{"params": [p]} for p in params],
    "two groups in another order": lambda params: [{"params": params[3:]}, {"params": params[:3]}],
    "a group without parameters": lambda params: [{"params": params}, {"params": []}],
}


@each_backend
@each_form
@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS.keys())
def test_splitting_the_groups_changes_nothing(method, form, backend, split):
    problem, options = Problem.make(), {**method.trials[1], "constraint": polyak.L2Ball(3.0)}
    whole, parts = problem.params(), problem.params()
    expected = problem.steps(method.build(whole, form, **options, **backend), whole, STEPS)
    _same(problem.steps(method.build(split(parts), form, **options, **backend), parts, STEPS), expected)


@each_backend
@each_form
@pytest.mark.parametrize("shapes", [((17,),), ((1,),) * 17, ((5,), (0,), (3, 4))], ids=["one", "many", "other"])
def test_splitting_the_tensors_changes_nothing(method, form, backend, shapes):
    points = []
    for problem in (Problem.make(), Problem.make(shapes=shapes)):
        params = problem.params()
        options = method.trials[1] | ({"norm": "adam"} if "norm" in method.defaults else {})  # matrices stay whole
        optimizer = method.build(params, form, **options, **backend, constraint=polyak.L2Ball(3.0))
        points.append(problem.steps(optimizer, params, STEPS))
    _same(*points)


def _run(method, form, options, scale=1.0, shift=0.0, **given):
    """Minimise scale · loss + shift and return the point and the step sizes."""
    problem, step_sizes = Problem.make(), []
    params = problem.params()
    optimizer = method.build(params, form, **options)
    for t in range(STEPS):
        optimizer.zero_grad()
        loss = scale * problem.loss(params, t) + shift
        loss.backward()
        optimizer.step(loss=loss, **given)
        step_sizes.append(optimizer.param_groups[0]["step_size"].item())
    return flat(params), np.array(step_sizes)


def _per_scale(method, options, scale):
    """Give the options that are step sizes, defaults included, the unit of the scaled problem."""
    options = {**method.defaults, **options, "eps": 0.0}
    return options | {name: options[name] / scale for name in method.step_sizes}


@each_scale_free_form
@pytest.mark.parametrize("scale", [1e-6, 3.0, 1e6])
@pytest.mark.parametrize("lr", [1.0, math.inf])
def test_scaling_the_loss_divides_the_step_sizes_and_leaves_the_points(method, form, scale, lr):
    options = {**method.trials[0], "lr": lr}
    x, γ = _run(method, form, _per_scale(method, options, 1.0))
    x_scaled, γ_scaled = _run(method, form, _per_scale(method, options, scale), scale)
    _same(x_scaled, x)
    np.testing.assert_allclose(γ_scaled * scale, γ, rtol=1e-10)


@each_form
@pytest.mark.parametrize("shift", [7.0, -0.25])
def test_adding_a_constant_to_the_loss_and_its_bound_changes_nothing(method, form, shift):
    options = method.trials[0]
    x, _ = _run(method, form, options | {"lower_bound": 0.0})
    _same(_run(method, form, options | {"lower_bound": shift}, shift=shift)[0], x)
    _same(_run(method, form, options | {"lower_bound": 0.0}, shift=shift, lower_bound=shift)[0], x)


@each_method
def test_the_bound_of_the_call_comes_before_the_bound_of_the_group(method):
    options = {
        name: value for name, value in method.trials[1].items() if name not in ("learn_lower_bound", "weight_decay")
    }
    options |= {"lr": 2.0}  # at the caps of some trials, no bound counts
    low, high = options | {"lower_bound": -5.0}, options | {"lower_bound": 0.01}
    x, _ = _run(method, "none", high)
    y, _ = _run(method, "none", low, lower_bound=torch.tensor(0.01, dtype=torch.float64))
    _same(y, x)
    z, _ = _run(method, "none", low)
    assert np.abs(z - x).max() > 1e-3
