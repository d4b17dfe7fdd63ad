"""L2Ball(relative=...): a multiple of the norm at construction; and the warning about a ball that shrinks a model."""

from __future__ import annotations

import copy
import io
import math
import pickle
import warnings

import pytest
import torch

import polyak
from catalogue import each_method
from observe import refused


def ones(n: int = 16) -> torch.nn.Parameter:
    """Return a vector of norm √n."""
    return torch.nn.Parameter(torch.ones(n))


def norm_after_a_long_step(optimizer: polyak.PolyakOptimizer) -> float:
    """Return the norm after a step from far outside the ball, back to its surface."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for p in params:
        p.detach().mul_(100.0)
        p.grad = -1e-3 * torch.ones_like(p)
    optimizer.step(loss=torch.tensor(1.0))
    return torch.cat([p.detach().flatten() for p in params]).norm().item()


@each_method
@pytest.mark.usefixtures("arithmetic")
def test_the_radius_is_a_multiple_of_the_norm_of_all_groups_at_construction(method):
    ball = polyak.L2Ball(relative=1.5)
    groups = [{"params": [ones(9)]}, {"params": [ones(16)]}]
    optimizer = method.build(groups, constraint=ball, lr=1e6)
    assert norm_after_a_long_step(optimizer) == pytest.approx(7.5)
    assert repr(ball) == "L2Ball(relative=1.5)"
    assert ball == polyak.L2Ball(relative=1.5)


def test_one_ball_serves_many_optimizers_and_groups():
    ball = polyak.L2Ball(relative=2.0)
    own, common, other = ones(4), ones(9), ones(100)
    optimizer = polyak.ALIG([{"params": [own], "constraint": ball}, {"params": [common]}], constraint=ball, lr=1e6)
    norm_after_a_long_step(optimizer)
    assert [own.norm().item(), common.norm().item()] == pytest.approx([4.0, 6.0])
    assert norm_after_a_long_step(polyak.ALIG([other], constraint=ball, lr=1e6)) == pytest.approx(20.0)


def test_frozen_parameters_do_not_count_and_a_group_added_later_has_a_ball_of_its_own_norm():
    frozen, own, ball = torch.nn.Parameter(torch.ones(100), requires_grad=False), ones(4), polyak.L2Ball(relative=2.0)
    w = ones(9)
    optimizer = polyak.ALIG([frozen, w], constraint=ball, lr=1e6)
    optimizer.add_param_group({"params": [own], "constraint": ball})
    optimizer.add_param_group({"params": [ones(1)], "constraint": None})
    for p in (w, own):
        p.grad = -1e-3 * torch.ones_like(p)
    optimizer.step(loss=torch.tensor(1.0))
    assert [w.norm().item(), own.norm().item()] == pytest.approx([6.0, 4.0])


@pytest.mark.parametrize("per_group", [False, True])
def test_a_state_keeps_the_radius_of_the_run_that_it_belongs_to(per_group):
    def build(w):
        ball = polyak.L2Ball(relative=2.0)
        return polyak.ALIG([{"params": [w], "constraint": ball}]) if per_group else polyak.ALIG([w], constraint=ball)

    held = io.BytesIO()
    torch.save(build(ones(4)).state_dict(), held)
    held.seek(0)
    resumed = build(ones(4).detach().mul_(3.0).requires_grad_())
    resumed.load_state_dict(torch.load(held, weights_only=True))
    assert norm_after_a_long_step(resumed) == pytest.approx(4.0)
    assert norm_after_a_long_step(copy.deepcopy(resumed)) == pytest.approx(4.0)
    assert norm_after_a_long_step(pickle.loads(pickle.dumps(resumed))) == pytest.approx(4.0)


def test_a_state_of_another_constraint_leaves_the_radius_alone():
    w = ones(4)
    optimizer = polyak.ALIG([w], constraint=polyak.L2Ball(relative=2.0), lr=1e6)
    optimizer.load_state_dict(polyak.ALIG([ones(4)], lr=1e6).state_dict())
    assert norm_after_a_long_step(optimizer) == pytest.approx(4.0)
    state = polyak.ALIG([ones(4)], constraint=polyak.L2Ball(relative=3.0), lr=1e6).state_dict()
    fixed = polyak.ALIG([ones(4)], constraint=polyak.L2Ball(5.0), lr=1e6)
    fixed.load_state_dict(state)
    assert norm_after_a_long_step(fixed) == pytest.approx(5.0)


@pytest.mark.parametrize("value", [0, 0.0, -1.5, math.nan, math.inf, "1.5", True])
def test_a_relative_radius_that_is_no_number_above_zero_is_refused(value):
    with refused(ValueError, "L2Ball", f"relative={value!r} is not allowed", "finite number > 0"):
        polyak.L2Ball(relative=value)


def test_exactly_one_of_radius_and_relative_is_given():
    with refused(ValueError, "L2Ball", "radius=1.0", "relative=1.5", "one of them"):
        polyak.L2Ball(1.0, relative=1.5)
    with refused(ValueError, "L2Ball", "radius=None is not allowed"):
        polyak.L2Ball()


def test_a_loaded_state_leaves_a_constraint_alone_that_was_given_since():
    state = polyak.ALIG([ones(4)], constraint=polyak.L2Ball(relative=3.0)).state_dict()
    optimizer = polyak.ALIG([{"params": [ones(4)], "constraint": polyak.L2Ball(relative=2.0)}], lr=1e6)
    optimizer.param_groups[0]["constraint"] = polyak.L2Ball(5.0)
    optimizer.load_state_dict(state)
    assert norm_after_a_long_step(optimizer) == pytest.approx(5.0)


def test_weights_loaded_after_construction_leave_the_radius_alone():
    model = torch.nn.Linear(3, 2)
    optimizer = polyak.ALIG(model.parameters(), constraint=polyak.L2Ball(relative=1.5), lr=1e6)
    radius = 1.5 * torch.nn.utils.get_total_norm(model.parameters()).item()
    model.load_state_dict({name: 7.0 * value for name, value in model.state_dict().items()})
    assert norm_after_a_long_step(optimizer) == pytest.approx(radius)


def test_groups_of_another_optimizer_bring_no_radius():
    first = polyak.ALIG([ones(4)], constraint=polyak.L2Ball(relative=2.0))
    (group,) = polyak.ALIG(first.param_groups, constraint=polyak.L2Ball(8.0)).param_groups
    assert "l2_ball_radius" not in group


def test_where_every_group_has_its_own_constraint_the_shared_ball_waits_for_one_that_has_none():
    own, later, last = ones(4), ones(9), ones(16)
    optimizer = polyak.ALIG([{"params": [own], "constraint": None}], constraint=polyak.L2Ball(relative=2.0), lr=1e6)
    own.grad = -1e-3 * torch.ones_like(own)
    optimizer.step(loss=torch.tensor(1.0))
    assert own.norm() > 100
    optimizer.add_param_group({"params": [later]})
    optimizer.add_param_group({"params": [last]})  # the radius stays the 6 of the first
    assert [group.get("l2_ball_radius") for group in optimizer.param_groups] == [None, 6.0, 6.0]
    norm_after_a_long_step(optimizer)
    assert torch.cat([later, last]).norm().item() == pytest.approx(6.0)


def test_a_ball_without_members_is_refused_by_what_it_lacks():
    frozen = torch.nn.Parameter(torch.ones(4), requires_grad=False)
    with refused(ValueError, "L2Ball(relative=1.5)", "no parameter that trains", "write L2Ball(radius)"):
        polyak.ALIG([frozen], constraint=polyak.L2Ball(relative=1.5))
    with refused(ValueError, "L2Ball(relative=1.5)", "meta device", "write L2Ball(radius)"):
        polyak.ALIG([torch.nn.Parameter(torch.ones(3, device="meta"))], constraint=polyak.L2Ball(relative=1.5))


def test_a_group_added_later_that_does_not_fit_into_the_ball_warns():
    optimizer = polyak.ALIG([ones(4)], constraint=polyak.L2Ball(relative=1.0))
    with pytest.warns(UserWarning, match=r"rescales the parameters from norm 4 to 2 as a group is added.* of its own"):
        optimizer.add_param_group({"params": [ones(12)]})


@pytest.mark.parametrize("value", [0.0, math.inf, math.nan])
def test_a_model_without_a_finite_norm_above_zero_is_refused(value):
    w = torch.nn.Parameter(torch.full((3,), value))
    with refused(ValueError, "L2Ball(relative=1.5)", "finite norm > 0", "write L2Ball(radius)"):
        polyak.ALIG([w], constraint=polyak.L2Ball(relative=1.5))
    optimizer = polyak.ALIG([ones()])
    with refused(ValueError, "L2Ball(relative=1.5)", "finite norm > 0", "write L2Ball(radius)"):
        optimizer.add_param_group({"params": [w], "constraint": polyak.L2Ball(relative=1.5)})
    assert len(optimizer.param_groups) == 1


def test_a_relative_ball_projects_only_within_an_optimizer():
    with refused(RuntimeError, "L2Ball(relative=1.5)", "write L2Ball(radius)"):
        polyak.L2Ball(relative=1.5).project_([torch.ones(3)])


@each_method
@pytest.mark.parametrize("per_group", [False, True])
def test_a_ball_that_shrinks_the_model_at_construction_is_warned_about_once(method, per_group):
    ball = polyak.L2Ball(2.0)
    rows = [{"params": [ones(8)]}, {"params": [ones(8)]}]
    if per_group:
        rows = [{**row, "constraint": ball} for row in rows]
    with warnings.catch_warnings(record=True, action="always") as caught:
        optimizer = method.build(rows, **({} if per_group else {"constraint": ball}), lr=1e-3)
        for _ in range(3):
            for group in optimizer.param_groups:
                group["params"][0].grad = torch.ones(8)
            optimizer.step(loss=torch.tensor(1.0))
    (message,) = [str(warning.message) for warning in caught]
    for words in (method.cls.__name__, "L2Ball(radius=2.0)", "2.828" if per_group else "norm 4", "to 2 ", "relative="):
        assert words in message
    assert len(message) < 300


@pytest.mark.parametrize("ball", [polyak.L2Ball(4.0), polyak.L2Ball(3.97), polyak.L2Ball(relative=1.0)], ids=repr)
def test_a_ball_that_holds_the_model_is_not_warned_about(ball):
    with warnings.catch_warnings(record=True, action="always") as caught:
        polyak.ALIG([ones(16)], constraint=ball)
    assert not caught


def test_gpt2_in_a_ball_of_100_is_told_both_norms_and_what_to_write():
    w = torch.nn.Parameter(torch.full((232 * 232,), 1.0))
    with pytest.warns(UserWarning, match="rescales") as caught:
        polyak.ALIG([w], constraint=polyak.L2Ball(100.0))
    assert str(caught[0].message) == (
        "ALIG: L2Ball(radius=100.0) rescales the parameters from norm 232 to 100 at construction, which can ruin a "
        "model: write L2Ball(relative=1.5) for 1.5 times their norm, or a larger radius."
    )
    assert w.norm().item() == pytest.approx(100.0)
    assert caught[0].filename == __file__
