"""Options of several groups, and options that are set later: one value for all, its own for each, or a sentence."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import polyak
from catalogue import METHODS, each_form, each_method
from observe import changed, give, random_like, refused, snapshot
from polyak._step.signature import FIXED
from problem import Problem, flat

OTHER: dict[str, Any] = {
    "momentum": 0.25,
    "bias_correction": True,
    "learn_lower_bound": True,
    "betas": (0.5, 0.75),
    "beta2": 0.25,
    "norm_beta": 0.25,
    "slack": 0.25,
    "delta": 2.0,
    "samples": 11,
    "steps_per_epoch": 4,
    "epochs": 7,
    "stages": 3,
}
SHARED = [(method, name) for method in METHODS for name in method.cls.shared]
each_shared = pytest.mark.parametrize(("method", "name"), SHARED, ids=lambda given: getattr(given, "name", given))


def two_groups(method, **second: Any):
    params = [nn.Parameter(torch.ones(2, 3)) for _ in range(2)]
    optimizer = method.build([{"params": params[:1]}, {"params": params[1:], **second}], lr=0.1)
    give(params, *random_like(params))
    return optimizer


@each_shared
def test_groups_that_differ_in_an_option_of_all_groups_are_refused_at_construction_and_when_one_is_added(method, name):
    sentence = (method.name, f"one value of {name} holds for all parameter groups", "give every group")
    with refused(ValueError, *sentence):
        two_groups(method, **{name: OTHER[name]})
    optimizer = two_groups(method)
    before = snapshot(optimizer)
    with refused(ValueError, *sentence):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], name: OTHER[name]})
    assert changed(before, snapshot(optimizer)) == set()
    optimizer.step(loss=1.0)


@each_shared
def test_so_are_those_that_become_different_later_or_in_a_state(method, name):
    optimizer = two_groups(method)
    optimizer.step(loss=1.0)
    saved = copy.deepcopy(optimizer.state_dict())
    optimizer.param_groups[1][name] = saved["param_groups"][1][name] = OTHER[name]
    before = snapshot(optimizer)
    for load in (False, True):
        with refused(ValueError, method.name, f"one value of {name}", "were given"):
            optimizer.load_state_dict(saved) if load else optimizer.step(loss=1.0)
    assert changed(before, snapshot(optimizer)) == set()


@each_shared
def test_all_groups_may_get_another_value_together(method, name):
    optimizer = two_groups(method)
    optimizer.step(loss=1.0)
    for group in optimizer.param_groups:
        group[name] = OTHER[name]
    if name in FIXED:
        with refused(ValueError, method.name, f"one value of {name}"):
            optimizer.step(loss=1.0)
        return
    before = flat(optimizer.param_groups[1]["params"])
    optimizer.step(loss=1.0)
    assert not np.array_equal(flat(optimizer.param_groups[1]["params"]), before)


TESTED_ELSEWHERE = {"foreach", "fused", "float32_momentum", "adjusted_momentum", "lr", "lower_bound", "eps"}
TESTED_ELSEWHERE |= {"norm", "polar", "init_step_size", "weight_lr_power", "stale"}
OWN = {
    "momentum": 0.25,
    "weight_decay": 0.5,
    "decoupled_weight_decay": True,
    "floor": 50.0,
    "c": 3e4,
    "c0": 3.0,
    "gamma": 1.0,
    "steps_per_epoch": 50,
    "final_momentum": 0.5,
    "anneal_steps": 2,
    "r": 2.0,
    "averaging_warmup": 4,
    "rho": 0.3,
    "normalized": False,
    "polar_steps": 1,
}


@each_form
def test_every_other_option_of_a_group_is_used_in_that_group(method, form):
    """An option that is neither shared nor used would be left out silently."""
    common = {"anneal_steps": 3} if "final_momentum" in method.defaults else {}
    common |= {"weight_decay": 0.01} if "decoupled_weight_decay" in method.defaults else {}
    common |= {"init_step_size": 1e-3} if "init_step_size" in method.defaults else {}
    for name in method.defaults.keys() - method.cls.shared - TESTED_ELSEWHERE:
        if name == "momentum" and form == "none":
            continue
        ends = []
        for own in ({}, {name: OWN[name]}):
            problem = Problem.make(shapes=((3, 3), (4, 3)))
            params = problem.params()
            groups = [{"params": params[:1]}, {"params": params[1:], **own}]
            problem.steps(method.build(groups, form, lr=0.3, **common), params, 6)
            ends.append(flat(params[1:]))
        assert not np.array_equal(*ends), name


@pytest.mark.parametrize("first", [True, False], ids=["first", "second"])
def test_a_group_of_matrices_may_be_stale_alone(first):
    """Its nuclear norm is that of the last step, the other group's that of this one."""
    w, v = (nn.Parameter(torch.zeros(2, 2, dtype=torch.float64)) for _ in range(2))
    groups = [{"params": [w], "stale": True}, {"params": [v]}]
    optimizer = polyak.MuonMoMo(groups if first else groups[::-1], lr=1e9, momentum=0.0, polar_steps=12)
    for scale, norm in ((1.0, 4.0), (2.0, 6.0), (5.0, 14.0)):
        give([w, v], *[scale * torch.eye(2, dtype=torch.float64)] * 2)
        w.data.zero_(), v.data.zero_()
        optimizer.step(loss=1.0)
        assert float(optimizer.last_step().step_size) == pytest.approx(1 / norm)


@pytest.mark.parametrize("p", [torch.ones(3), torch.ones(2, 3, 4), torch.ones(2, 2, dtype=torch.complex64)], ids=str)
def test_the_spectral_norm_is_refused_later_and_in_a_state_for_what_is_no_real_matrix(p):
    optimizer = polyak.MuonMoMo([nn.Parameter(p)])
    sentence = ("MuonMoMo: norm='spectral' is for real matrices", str(tuple(p.shape)), "norm='adam'")
    saved = optimizer.state_dict()
    saved["param_groups"][0]["norm"] = "spectral"
    with refused(ValueError, *sentence):
        optimizer.load_state_dict(saved)
    give(optimizer.param_groups[0]["params"], torch.ones_like(p))
    optimizer.step(loss=1.0)
    optimizer.param_groups[0]["norm"] = "spectral"
    before = snapshot(optimizer)
    with refused(ValueError, *sentence):
        optimizer.step(loss=1.0)
    assert changed(before, snapshot(optimizer)) == set()


@each_method
@pytest.mark.parametrize(("name", "value"), [("amsgrad", True), ("dampening", 0.5)])
def test_a_group_that_asks_for_the_step_of_another_optimizer_is_refused(method, name, value):
    with refused(ValueError, f"{method.name} has no option {name!r}"):
        method.build([{"params": [nn.Parameter(torch.ones(2))], name: value}])
    method.build([{"params": [nn.Parameter(torch.ones(2))], name: 0 * value}])


@pytest.mark.parametrize("name", ["floor", "slack", "learn_lower_bound", "polar_steps", "final_momentum", "c0"])
def test_an_option_of_another_method_in_a_group_is_told(name):
    p = nn.Parameter(torch.ones(2))
    optimizer = polyak.ALIG([{"params": [p], name: 0.5}])
    give([p], torch.ones(2))
    with pytest.warns(UserWarning, match=f"ALIG: {name}=0.5 in a parameter group has no effect: it is an option of an"):
        optimizer.step(loss=1.0)


@pytest.mark.parametrize("closure", [torch.tensor(1.0), 1.0, [1.0], "loss"], ids=str)
def test_sam_says_what_to_write_where_a_loss_is_given_instead_of_a_closure(closure):
    p = nn.Parameter(torch.ones(2))
    give([p], torch.ones(2))
    with refused(TypeError, "SAMSPS.step() evaluates the loss twice", "write optimizer.step(closure) with a closure"):
        polyak.SAMSPS([p]).step(closure)


@pytest.mark.parametrize("cls", [polyak.NGN, polyak.NGNMD], ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("lr", [0.0, torch.tensor(0.0)], ids=["number", "tensor"])
def test_a_warm_up_from_zero_at_the_bound_is_no_skipped_step_and_the_heavy_ball_goes_on(cls, lr):
    """2·0 / (2·0 / 0 + ‖g‖²) would be NaN."""
    p = nn.Parameter(torch.ones(2))
    optimizer = cls([p], **({"momentum": 0.5} if cls is polyak.NGN else {"betas": (0.5, 0.9)}))
    give([p], torch.ones(2))
    optimizer.step(loss=1.0)
    first = 1 - p.detach().clone()
    optimizer.param_groups[0]["lr"] = lr
    optimizer.step(loss=0.0)
    assert (int(optimizer.last_step().skipped_steps), float(optimizer.last_step().step_size)) == (0, 0.0)
    torch.testing.assert_close(1 - p.detach(), 1.5 * first)


AVERAGED = [method for method in METHODS if method.name in ("MoMo", "MoMoAdam", "SignSPS", "MuonMoMo")]


@pytest.mark.parametrize("where", ["host", "device"])
@pytest.mark.parametrize("method", AVERAGED, ids=lambda method: method.name)
def test_a_bound_that_shifts_with_every_loss_changes_nothing(method, where, request):
    """A model that averages losses averages their bounds, such as a teacher's losses, with the same weights."""
    if where == "device":
        request.getfixturevalue("device_arithmetic")
    ends = []
    options = {**method.trials[0], "lr": math.inf, **({"bias_correction": True} if method.name == "MoMo" else {})}
    for shifts in ([0.0] * 8, [3.0, -1.0, 0.5, 7.0, 0.0, -2.0, 1.0, 4.0]):
        problem = Problem.make()
        params = problem.params()
        optimizer = method.build(params, **options)
        for t, shift in enumerate(shifts[: 4 if method.name == "MuonMoMo" else 8]):
            optimizer.zero_grad()
            loss = problem.loss(params, t) + shift
            loss.backward()
            optimizer.step(loss=loss, lower_bound=shift - 0.01)
        ends.append(flat(params))
    np.testing.assert_allclose(*ends, rtol=1e-11)


@pytest.mark.parametrize("first", [True, False])
def test_one_group_may_decay_as_adamw_does_and_another_proximally(first):
    problem, params, twins = Problem.make(), Problem.make().params(), Problem.make().params()
    groups = [{"params": params[:2], "decoupled_weight_decay": True}, {"params": params[2:]}]
    optimizer = polyak.MoMoAdam(groups if first else groups[::-1], weight_decay=0.3, lower_bound=-1e6)
    adam = torch.optim.AdamW(
        [{"params": twins[:2], "weight_decay": 0.3}, {"params": twins[2:]}], 0.01, weight_decay=0.0
    )
    for t in range(10):
        problem.steps(optimizer, params, 1, first=t)
        adam.zero_grad()
        problem.loss(twins, t).backward()
        adam.step()
        for p in twins[2:]:
            p.data.div_(1 + 0.01 * 0.3)
    np.testing.assert_allclose(flat(params), flat(twins), rtol=1e-13)


FOREIGN = {"momentum": 0.9, "adjusted_momentum": True, "learn_lower_bound": True, "decoupled_weight_decay": True}
FOREIGN |= {"norm": "spectral", "betas": (0.1, 0.2), "bias_correction": True, "stale": True, "slack": 0.1, "rho": 5.0}


@each_form
@pytest.mark.filterwarnings("ignore:.*in a parameter group has no effect")
def test_an_option_of_another_method_in_a_group_changes_nothing(method, form):
    """Other code may keep such keys in its groups."""
    foreign = {name: value for name, value in FOREIGN.items() if name not in method.defaults}
    ends = []
    for more in ({}, foreign):
        problem = Problem.make()
        params = problem.params()
        ends.append(problem.steps(method.build([{"params": params, **more}], form, lr=0.1), params, 5))
    assert np.array_equal(*ends)


@pytest.mark.parametrize("backend", [{}, {"foreach": False}, {"fused": True}], ids=str)
@pytest.mark.parametrize(
    "method", [m for m in METHODS if m.name in ("MoMo", "MoMoAdam")], ids=lambda method: method.name
)
@pytest.mark.parametrize("star", [False, True])
def test_groups_with_a_cap_and_a_decay_of_their_own_follow_one_model(method, star, backend):
    """s = 1 + lr·λ is then another number for every coordinate; the step reaches the bound of the model exactly."""
    problem, lrs, decay = Problem.make(), (0.3, 2.0), 0.2
    params = problem.params()
    options = {"weight_decay": decay, "learn_lower_bound": star, "lower_bound": -0.05}
    groups = [{"params": part, "lr": lr} for part, lr in zip((params[:1], params[1:]), lrs, strict=True)]
    x = problem.steps(method.cls(groups, **options, **backend), params, 15)
    options["lr"] = np.repeat(lrs, [6, x.size - 6])
    expected = method.paper(problem.start, problem.oracle, 15, **{method.symbols[k]: v for k, v in options.items()})
    np.testing.assert_allclose(x, expected, rtol=1e-11)


@pytest.mark.parametrize(
    ("cls", "given", "said"),
    [("MoMoAdam", "momentum", "betas"), ("MoMo", "betas", "momentum"), ("SPS", "betas", "momentum")],
)
def test_the_average_of_gradients_is_named_as_the_method_names_it(cls, given, said):
    with refused(TypeError, f"{cls} has no option {given!r}: did you mean {said}?"):
        getattr(polyak, cls)([nn.Parameter(torch.ones(2))], **{given: 0.9})


@pytest.mark.parametrize("infinite", [math.inf, torch.tensor(math.inf)], ids=["float", "tensor"])
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_a_factor_is_finite_at_every_door(infinite, steps):
    """`lr` of ScheduleFreePlus multiplies the step; inf stopped training without a word."""
    words = "ScheduleFreePlus: lr=", "it must be a finite number ≥ 0"
    with refused(ValueError, *words):
        polyak.ScheduleFreePlus([nn.Parameter(torch.ones(2))], lr=infinite)
    p = nn.Parameter(torch.ones(2))
    optimizer = polyak.ScheduleFreePlus([p], lr=0.5)
    with refused(ValueError, *words):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "lr": infinite})
    for _ in range(steps):
        p.grad = torch.ones(2)
        optimizer.step(loss=1.0)
    state = copy.deepcopy(optimizer.state_dict())
    state["param_groups"][0]["lr"] = infinite
    with refused(ValueError, *words):
        optimizer.load_state_dict(state)
    optimizer.param_groups[0]["lr"], p.grad = infinite, torch.ones(2)
    before = snapshot(optimizer)
    with refused(ValueError, *words):
        optimizer.step(loss=1.0)
    assert {key for key in changed(before, snapshot(optimizer)) if key in before} == set()
