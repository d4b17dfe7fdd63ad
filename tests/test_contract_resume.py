"""Saving and going on: state dicts, files, pickle, deepcopy, older and renamed states, distributed checkpoints."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

import polyak
from catalogue import each_backend, each_buffered, each_classic, each_form, each_method
from observe import SMALL_BALLS, changed, give, plain, random_like, refused, snapshot

pytestmark = pytest.mark.filterwarnings(SMALL_BALLS)

COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda optimizer: pickle.loads(pickle.dumps(optimizer)),
}
each_copy = pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES.keys())
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64], ids=str)

Optimizer = polyak.PolyakOptimizer


def fresh(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    return [nn.Parameter(value) for value in random_like([torch.empty(n, dtype=dtype) for n in (3, 2)], seed=7)]


def groups(params: list[nn.Parameter]) -> list[dict[str, Any]]:
    return [{"params": params[:1], "lr": 0.5}, {"params": params[1:]}]


def run(optimizer: Optimizer, first: int, last: int) -> None:
    """Make the steps first … last − 1, of which every third is a bad one."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for t in range(first, last):
        give(params, *random_like(params, seed=t))
        optimizer.step(loss=math.nan if t % 3 == 2 else 1.0 / (1 + t))


def through_a_file(content: Any) -> Any:
    """Save and load with torch's defaults, which refuse anything but plain data."""
    file = io.BytesIO()
    torch.save(content, file)
    file.seek(0)
    return torch.load(file)


@each_form
@each_backend
@each_dtype
def test_a_loaded_state_goes_on_exactly(method, form, backend, dtype):
    options = {"lr": 0.2, "lower_bound": -0.1, "constraint": polyak.L2Ball(1.0), **backend}
    params = fresh(dtype)
    optimizer = method.build(groups(params), form, **options)
    run(optimizer, 0, 4)
    saved = through_a_file({"params": params, "optimizer": optimizer.state_dict()})
    resumed = method.build(groups(saved["params"]), form, constraint=polyak.L2Ball(1.0))
    resumed.load_state_dict(saved["optimizer"])
    assert changed(snapshot(optimizer), snapshot(resumed)) == set()
    for each in (optimizer, resumed):
        run(each, 4, 9)
    assert changed(snapshot(optimizer), snapshot(resumed)) == set()
    assert int(resumed.last_step(1).skipped_steps) == 3


@each_form
def test_a_state_survives_loading_unchanged(method, form):
    optimizer, resumed = (method.build(groups(fresh()), form) for _ in range(2))
    run(optimizer, 0, 4)
    resumed.load_state_dict(optimizer.state_dict())
    assert plain(resumed.state_dict()["param_groups"]) == plain(optimizer.state_dict()["param_groups"])
    assert [set(group) for group in resumed.param_groups] == [set(group) for group in optimizer.param_groups]


@each_buffered
@each_backend
def test_the_state_of_another_model_is_refused_and_nothing_loaded(method, backend):
    optimizer, larger = (
        method.build([nn.Parameter(torch.ones(size))], "nesterov", lr=lr, **backend)
        for size, lr in ((3, 0.5), (100_000, 0.1))
    )
    for each in (optimizer, larger):
        run(each, 0, 1)
    before = snapshot(larger)
    with refused(ValueError, method.name, "shape (3,)", "shape (100000,)", "same parameters"):
        larger.load_state_dict(optimizer.state_dict())
    assert changed(before, snapshot(larger)) == set()
    run(larger, 1, 2)


@each_form
@each_backend
@each_copy
def test_copies_go_on_exactly_within_their_constraints(method, form, backend, duplicate):
    params = fresh()
    cells = groups(params)
    cells[0]["constraint"] = polyak.L2Ball(0.5)
    optimizer = method.build(cells, form, lr=0.2, constraint=polyak.LInfBall(0.1), **backend)
    run(optimizer, 0, 4)
    twin = duplicate(optimizer)
    for each in (optimizer, twin):
        run(each, 4, 8)
    assert changed(snapshot(optimizer), snapshot(twin)) == set()
    (first,), (second,) = (group["params"] for group in twin.param_groups)
    assert first is not params[0]
    for t in range(3):
        give([first, second], torch.full_like(first, -9.0), torch.full_like(second, -9.0))
        twin.step(loss=1e3 + t)
    norm, largest = float(first.detach().norm()), float(second.detach().abs().max())
    assert norm <= 0.5 * (1 + 1e-6)
    assert largest <= 0.1 * (1 + 1e-6)
    if not hasattr(method.cls, "eval"):  # whose z has come to the boundary, but not yet the average of it
        assert (norm, largest) == (pytest.approx(0.5), pytest.approx(0.1))


@each_method
@each_copy
def test_a_group_added_to_a_copy_is_checked_and_constrained(method, duplicate):
    twin = duplicate(method.build(fresh(), constraint=polyak.L2Ball(1.0)))
    late = nn.Parameter(torch.full((4,), 5.0))
    twin.add_param_group({"params": [late]})
    assert float(late.detach().norm()) <= 1.0
    with pytest.raises(ValueError, match="has no option 'differentiable'"):
        twin.add_param_group({"params": fresh(), "differentiable": True})


@each_method
def test_an_optimizer_can_be_copied_before_its_first_step(method):
    optimizer = method.build(fresh(), "nesterov")
    twin = copy.deepcopy(optimizer)
    for each in (optimizer, twin):
        run(each, 0, 3)
    assert changed(snapshot(optimizer), snapshot(twin)) == set()
    with pytest.raises(RuntimeError, match="there was no step"):
        copy.deepcopy(optimizer).last_step()


@each_classic
def test_a_state_from_before_an_option_existed_gets_its_default(method):
    options = method.defaults
    saved = method.build(fresh(), "nesterov").state_dict()
    for name in saved["param_groups"][0].keys() - {"params"}:
        older = copy.deepcopy(saved)
        del older["param_groups"][0][name]
        optimizer = method.build(fresh())
        optimizer.load_state_dict(older)
        group = optimizer.param_groups[0]
        assert name in group
        assert group[name] == options.get(name, group[name])
        run(optimizer, 0, 2)
        assert float(group["step_size"]) > 0


@each_method
def test_memory_missing_from_an_older_state_starts_afresh(method):
    saved = method.build(fresh(), lr=1.0).state_dict()
    start = method.build(fresh(), lr=1.0)
    scalars = {name for name, value in saved["param_groups"][0].items() if isinstance(value, torch.Tensor)}
    for name in scalars:
        del saved["param_groups"][0][name]
    optimizer = method.build(fresh(), lr=1.0)
    run(optimizer, 0, 3)
    optimizer.load_state_dict(saved)
    group = optimizer.param_groups[0]
    assert {name: group[name].tolist() for name in scalars} == {
        name: start.param_groups[0][name].tolist() for name in scalars
    }


@each_method
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_scalars_stay_float32_beside_narrow_parameters(method, dtype):
    optimizer, resumed = (method.build(fresh(dtype), "nesterov") for _ in range(2))
    run(optimizer, 0, 2)
    resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    assert resumed.param_groups[0]["step_size"].dtype == torch.float32
    assert changed({k: v for k, v in snapshot(optimizer).items() if "parameter" not in k}, {
        k: v for k, v in snapshot(resumed).items() if "parameter" not in k
    }) == set()  # fmt: skip


@each_method
def test_states_with_and_without_names_load_into_each_other(method):
    model = nn.Linear(3, 2)
    named, plain = method.build(model.named_parameters(), "nesterov"), method.build(model.parameters(), "nesterov")
    run(named, 0, 2)
    plain.load_state_dict(named.state_dict())
    named.load_state_dict(plain.state_dict())
    for name, value in snapshot(named).items():
        assert torch.equal(value, snapshot(plain)[name])


@each_method
def test_two_states_of_one_optimizer_are_the_same(method):
    optimizer = method.build(groups(fresh()), "nesterov")
    run(optimizer, 0, 3)
    first, second = optimizer.state_dict(), optimizer.state_dict()
    assert plain(first["param_groups"]) == plain(second["param_groups"])
    assert list(first["state"]) == list(second["state"])


@each_form
def test_distributed_checkpoints_resume_exactly(method, form):
    """torch prepares a fresh optimizer by a step with lr = 0 and without a loss, which must leave no trace."""
    model = nn.Linear(3, 2)
    optimizer = method.build(model.parameters(), form, lr=0.2)
    run(optimizer, 0, 4)
    saved = through_a_file(get_optimizer_state_dict(model, optimizer))
    twin = copy.deepcopy(model)
    resumed = method.build(twin.parameters(), form)
    set_optimizer_state_dict(twin, resumed, saved)
    for each in (optimizer, resumed):
        run(each, 4, 9)
    assert changed(snapshot(optimizer), snapshot(resumed)) == set()
    assert int(resumed.last_step().skipped_steps) == 3


@each_form
def test_asking_a_fresh_optimizer_for_its_distributed_state_moves_nothing(method, form):
    model = nn.Linear(3, 2)
    optimizer = method.build(model.parameters(), form, lr=0.2)
    before = snapshot(optimizer)
    get_optimizer_state_dict(model, optimizer)
    after = snapshot(optimizer)
    assert changed(before, after) == after.keys() - before.keys()
    assert (optimizer.param_groups[0]["lr"], int(optimizer.param_groups[0]["skipped_steps"])) == (0.2, 0)


@each_form
def test_a_step_without_loss_at_lr_zero_only_creates_the_state(method, form):
    params = fresh()
    optimizer = method.build(groups(params), form, constraint=polyak.L2Ball(10.0))
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    give(params, *random_like(params))
    before = snapshot(optimizer)
    assert optimizer.step() is None
    after = snapshot(optimizer)
    assert changed(before, after) == after.keys() - before.keys()
    expected = {p for p in params if optimizer.buffers(optimizer.param_groups[0])}
    assert set(optimizer.state) == expected
    with pytest.raises(RuntimeError, match="there was no step"):
        optimizer.last_step()
    optimizer.param_groups[0]["lr"] = 1e-9
    with pytest.raises(RuntimeError, match=r"step\(\) needs the loss"):
        optimizer.step()
