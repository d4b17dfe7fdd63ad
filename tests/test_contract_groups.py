"""Parameter groups: one norm over all of them, their own options and constraints, frozen and late parameters."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import _functional_collectives as collectives
from torch.distributed.tensor import Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.testing._internal.distributed.fake_pg import FakeStore

import polyak
from catalogue import each_backend, each_classic, each_classic_form, each_form, each_method
from observe import SMALL_BALLS, bits, changed, give, moved, plain, random_like, snapshot
from problem import Problem, flat

pytestmark = pytest.mark.filterwarnings(SMALL_BALLS)


def norm(*params: Tensor) -> float:
    return float(torch.cat([p.detach().reshape(-1) for p in params]).norm())


def ones(*sizes: int, dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(size, dtype=dtype)) for size in sizes]


@each_form
@each_backend
def test_groups_with_the_same_options_are_one_vector(method, form, backend):
    problem, ends = Problem.make(), []
    for cut in (0, 2):
        params = problem.params()
        groups = [{"params": part} for part in (params[:cut], params[cut:]) if part]
        optimizer = method.build(groups, form, constraint=polyak.L2Ball(1.5), **backend)
        ends.append(problem.steps(optimizer, params, 10))
    np.testing.assert_allclose(ends[0], ends[1], rtol=1e-12)


@each_classic_form
def test_groups_share_one_norm_and_keep_their_own_cap(method, form):
    a, b = ones(3, 2)
    optimizer = method.build([{"params": [a], "lr": 1e-3}, {"params": [b], "lr": 10.0}], form, eps=0.0)
    give([a, b], torch.full_like(a, 0.5), torch.full_like(b, 2.0))
    optimizer.step(loss=0.1 * (3 * 0.25 + 2 * 4.0))
    first, second = optimizer.last_step(0), optimizer.last_step(1)
    assert float(first.grad_sq_norm) == float(second.grad_sq_norm) == pytest.approx(8.75)
    assert float(first.ratio) == float(second.ratio) == pytest.approx(0.1 / optimizer.defaults.get("c", 1.0))
    assert (float(first.step_size), bool(first.capped)) == (1e-3, True)
    assert (float(second.step_size), bool(second.capped)) == (float(second.ratio), False)


@each_classic
def test_a_group_at_rest_still_counts_in_the_norm(method):
    a, b = ones(1, 1)
    optimizer = method.build([{"params": [a]}, {"params": [b]}])
    optimizer.param_groups[1]["lr"] = 0.0
    give([a, b], torch.ones_like(a), 3 * torch.ones_like(b))
    optimizer.step(loss=0.01)
    assert float(optimizer.last_step().grad_sq_norm) == 10.0
    assert (b.item(), bool(optimizer.last_step(1).skipped)) == (1.0, False)
    assert a.item() < 1.0


@each_classic
def test_every_group_has_its_own_lower_bound_and_a_call_overrides_all(method):
    a, b = ones(1, 1)
    optimizer = method.build([{"params": [a], "lower_bound": 0.5}, {"params": [b]}], eps=0.0, lr=math.inf)
    give([a, b], torch.ones_like(a), torch.ones_like(b))
    optimizer.step(loss=0.6)
    gaps = [float(optimizer.last_step(i).ratio) for i in (0, 1)]
    assert gaps[1] == pytest.approx(6 * gaps[0])
    for bound in (0.4, torch.tensor([0.4]), 0):
        optimizer.step(loss=0.6, lower_bound=bound)
        same = [float(optimizer.last_step(i).ratio) for i in (0, 1)]
        assert same == pytest.approx([gaps[1] * (0.6 - float(bound)) / 0.6] * 2)


@each_form
def test_a_group_can_be_added_later(method, form):
    problem = Problem.make()
    params = problem.params()
    optimizer = method.build(params[:2], form, constraint=polyak.L2Ball(2.0))
    problem.steps(optimizer, params, 3)
    memory = {name: value for name, value in snapshot(optimizer).items() if name.endswith(" 0")}
    optimizer.add_param_group({"params": params[2:], "lr": 0.05})
    assert norm(*params) <= 2.0 + 1e-12
    assert plain({name: value for name, value in snapshot(optimizer).items() if name.endswith(" 0")}) == plain(memory)
    before = flat(params[2:])
    problem.steps(optimizer, params, 3)
    assert not np.array_equal(flat(params[2:]), before)
    assert float(optimizer.last_step(1).step_size) <= 0.05
    assert norm(*params) <= 2.0 + 1e-12


@each_method
def test_a_wider_group_widens_the_scalars_of_all(method):
    a, b = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = method.build([a], lr=0.1)
    give([a], torch.ones(1))
    optimizer.step(loss=1.0)
    gamma = optimizer.param_groups[0]["step_size"].clone()
    optimizer.add_param_group({"params": [b]})
    assert torch.equal(optimizer.param_groups[0]["step_size"], gamma.double())
    give([a, b], torch.ones(1), torch.ones(1, dtype=torch.float64))
    optimizer.step(loss=1.0)
    assert {optimizer.last_step(i).step_size.dtype for i in (0, 1)} == {torch.float64}


@each_form
@each_backend
def test_constraints_of_one_group_of_the_rest_and_of_none(method, form, backend):
    own, first, second, free = (ones(4)[0] for _ in range(4))
    groups = [
        {"params": [own], "constraint": polyak.L2Ball(1.0)},
        {"params": [first]},
        {"params": [free], "constraint": None},
        {"params": [second]},
    ]
    optimizer = method.build(groups, form, lr=1.0, constraint=polyak.L2Ball(2.0), **backend)
    assert (norm(own), norm(first, second), norm(free)) == (pytest.approx(1.0), pytest.approx(2.0), 2.0)
    params = [own, first, free, second]
    give(params, *(-torch.ones_like(p) for p in params))
    optimizer.step(loss=100.0)
    assert norm(own) == pytest.approx(1.0)
    assert norm(first, second) == pytest.approx(2.0)
    assert norm(free) > 2.0


@each_method
def test_every_constraint_can_hold_for_one_group(method):
    sets = [polyak.L1Ball(1.0), polyak.Simplex(2.0), polyak.Box(-0.5, 0.5), polyak.Halfspace(torch.ones(3), 1.5)]
    params = ones(*[3] * len(sets))
    method.build([{"params": [p], "constraint": omega} for p, omega in zip(params, sets, strict=True)])
    expected = [1 / 3, 2 / 3, 0.5, 0.5]
    assert [p.tolist() for p in params] == [pytest.approx([value] * 3) for value in expected]


@each_form
@each_backend
def test_frozen_parameters_are_never_projected(method, form, backend):
    frozen, moving = ones(4, 4)
    frozen.requires_grad_(False)
    optimizer = method.build([frozen, moving], form, constraint=polyak.L2Ball(0.5), **backend)
    assert norm(moving) == pytest.approx(0.5)
    give([moving], -torch.ones_like(moving))
    optimizer.step(loss=1.0)
    assert frozen.tolist() == [1.0] * 4
    assert norm(moving) == pytest.approx(0.5)


@each_form
@each_backend
def test_parameters_without_a_gradient_are_untouched_and_have_no_state(method, form, backend):
    used, unused = ones(3, 3)
    optimizer = method.build([used, unused], form, **backend)
    before = bits(unused)
    for _ in range(3):
        give([used, unused], torch.ones_like(used), None)
        optimizer.step(loss=1.0)
    assert bits(unused) == before
    assert unused not in optimizer.state


@each_form
@each_backend
def test_a_late_parameter_starts_as_if_its_gradient_had_been_zero(method, form, backend):
    ends = []
    for early in (None, torch.zeros(2, dtype=torch.float64)):
        params = ones(3, 2)
        optimizer = method.build(params, form, **backend)
        for t in range(5):
            first, late = random_like(params, seed=t)
            give(params, first, late if t >= 2 else early)
            optimizer.step(loss=1.0 + t)
        ends.append(snapshot(optimizer))
    torch.testing.assert_close(*ends, rtol=1e-12, atol=0)
    assert not torch.equal(ends[0]["parameter 0.1"], torch.ones(2, dtype=torch.float64))


@each_form
def test_a_group_without_gradients_is_not_counted_as_skipped(method, form):
    a, b = ones(2, 2)
    optimizer = method.build([{"params": [a]}, {"params": [b]}], form)
    before = snapshot(optimizer)
    give([a, b], torch.ones_like(a), None)
    optimizer.step(loss=1.0)
    assert [int(optimizer.last_step(i).skipped_steps) for i in (0, 1)] == [0, 0]
    assert {name for name in moved(before, snapshot(optimizer)) if name.endswith(".1") or " 1." in name} == set()


@each_method
@pytest.mark.parametrize(
    ("shared", "group", "expected"),
    [
        (polyak.Halfspace(torch.ones(2), 1.0), {"params": ones(1)}, ValueError),
        (polyak.Affine(torch.ones(1, 2), torch.ones(1)), {"params": ones(1)}, ValueError),
        (polyak.L1Ball(1.0), {"params": ones(2, dtype=torch.complex128)}, TypeError),
        (None, {"params": ones(2, dtype=torch.complex128), "constraint": polyak.NonNegative()}, TypeError),
        (None, {"params": ones(1), "constraint": polyak.Halfspace(torch.ones(2), 1.0)}, ValueError),
    ],
    ids=["half-space", "affine", "complex", "own complex", "own half-space"],
)
def test_a_group_that_the_constraint_refuses_is_not_added(method, shared, group, expected):
    params = ones(2, dtype=torch.float32)
    optimizer = method.build(params, "nesterov", constraint=shared)
    before = snapshot(optimizer)
    with pytest.raises(expected):
        optimizer.add_param_group(group)
    assert changed(before, snapshot(optimizer)) == set()
    give(params, torch.ones_like(params[0]))
    optimizer.step(loss=0.1)


@each_method
def test_parameters_come_as_an_iterator_as_names_or_as_groups(method):
    model, twin = nn.Linear(3, 2), nn.Linear(3, 2)
    twin.load_state_dict(model.state_dict())
    named = method.build(model.named_parameters())
    plain = method.build([{"params": p} for p in twin.parameters()])
    for side, optimizer in ((model, named), (twin, plain)):
        loss = side(torch.ones(4, 3)).square().mean()
        loss.backward()
        optimizer.step(loss=loss)
    assert named.param_groups[0]["param_names"] == ["weight", "bias"]
    torch.testing.assert_close(model.weight, twin.weight)


@pytest.fixture
def two_processes() -> Any:
    """A group of two processes of which this is one and the other does not exist: nothing is sent."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield dist.device_mesh.init_device_mesh("cpu", (2,))
    dist.destroy_process_group()


@pytest.mark.parametrize("groups", [1, 3, 8])
def test_the_norm_over_sharded_groups_takes_one_message(groups, two_processes):
    sharded = [distribute_tensor(torch.ones(4, 2), two_processes, [Shard(0)], src_data_rank=None) for _ in range(8)]
    params = [torch.nn.Parameter(tensor) for tensor in sharded]
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer = polyak.ALIG([{"params": params[i::groups]} for i in range(groups)], sync_loss=False)
    with CommDebugMode() as messages:
        optimizer.step(loss=torch.ones(()))
    assert messages.get_total_counts() == 1


@each_classic
def test_a_loss_is_averaged_among_the_processes_of_the_group_alone(method, monkeypatch):
    """Four processes, of which two are a group and none but this one exists: the mean is half of the loss."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    try:
        asked, own = [], dist.new_group([0, 1])
        reduce = collectives.all_reduce

        def gather(everyone, mine, group):
            asked.append(group)
            everyone[:] = [mine] * len(everyone)

        monkeypatch.setattr(dist, "all_gather_object", gather)
        monkeypatch.setattr(collectives, "all_reduce", lambda x, op, to: asked.append(to) or reduce(x, op, to))
        (w,) = ones(3)
        optimizer = method.build([w], process_group=own)
        w.grad = torch.ones_like(w)
        optimizer.step(loss=8.0)
        assert float(optimizer.last_step().loss) == 4.0
        assert len(asked) >= 2
        assert all(group is own for group in asked)
    finally:
        dist.destroy_process_group()
