"""A state belongs to its method: what load_state_dict refuses, what a snapshot keeps, what copies share."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.optim import lr_scheduler

import polyak
from catalogue import CLASSIC, METHODS, each_buffered, each_form, each_method
from observe import changed, give, plain, random_like, refused, snapshot


def fresh() -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))]


def run(optimizer: Any, steps: int = 3, first: int = 0, **given: Any) -> Any:
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for t in range(first, first + steps):
        give(params, *random_like(params, seed=t))
        optimizer.step(**given)
    return optimizer


def without_method(state: dict[str, Any]) -> dict[str, Any]:
    """Return the state as 0.1.0 wrote it."""
    for group in state["param_groups"]:
        del group["polyak_method"]
    return state


FOREIGN: dict[str, Callable[[], dict[str, Any]]] = {
    "SGD": lambda: run(torch.optim.SGD(fresh(), 0.1, momentum=0.9, weight_decay=5e-4)).state_dict(),
    "SGD without a step": lambda: torch.optim.SGD(fresh()).state_dict(),
    "Adam": lambda: run(torch.optim.Adam(fresh())).state_dict(),
    "AdamW": lambda: run(torch.optim.AdamW(fresh(), fused=True)).state_dict(),
    "RMSprop": lambda: run(torch.optim.RMSprop(fresh(), momentum=0.9)).state_dict(),
    "Adagrad": lambda: run(torch.optim.Adagrad(fresh())).state_dict(),
    "no options": lambda: {"state": {}, "param_groups": [{"params": [0, 1]}]},
    "one foreign group": lambda: {"state": {}, "param_groups": [{"params": [0, 1], "lr": 0.1, "betas": (0.9, 0.99)}]},
    "a model": lambda: nn.Linear(2, 1).state_dict(),
    "nothing": dict,
}


@each_method
@pytest.mark.parametrize("state", FOREIGN.values(), ids=FOREIGN.keys())
def test_the_state_of_another_optimizer_is_refused_and_nothing_loaded(method, state):
    optimizer = run(method.build(fresh(), "nesterov"), loss=1.0)
    before = snapshot(optimizer)
    with refused(ValueError, method.name, f"{method.name}.state_dict() returned"):
        optimizer.load_state_dict(state())
    assert changed(before, snapshot(optimizer)) == set()


@each_method
@pytest.mark.parametrize("age", ["new", "0.1.0"])
def test_the_state_of_another_method_is_refused(method, age):
    for other in METHODS if age == "new" else CLASSIC:
        saved = run(other.build(fresh(), "nesterov"), loss=1.0).state_dict()
        saved = saved if age == "new" else without_method(saved)
        optimizer = method.build(fresh())
        if other.name == method.name:
            optimizer.load_state_dict(saved)
            continue
        with refused(ValueError, method.name, f"belongs to {other.name}: load one that"):
            optimizer.load_state_dict(saved)


@each_method
def test_a_wrong_value_in_a_state_is_refused(method):
    wrong = {"momentum": 1.5, "lr": -1.0, "lower_bound": "0", "foreach": 3}
    for name, value in ((name, value) for name, value in wrong.items() if name in method.defaults):
        optimizer, saved = method.build(fresh()), method.build(fresh()).state_dict()
        saved["param_groups"][0][name] = value
        with refused(ValueError, method.name, f"{name}={value!r} is not allowed"):
            optimizer.load_state_dict(saved)


@each_buffered
def test_a_buffer_that_is_no_tensor_is_refused(method):
    optimizer = method.build(fresh(), "nesterov")
    names = optimizer.buffers(optimizer.param_groups[0])
    assert names
    for name in names:
        saved = run(method.build(fresh(), "nesterov"), loss=1.0).state_dict()
        saved["state"][0][name] = None
        with refused(ValueError, method.name, "of shape NoneType"):
            method.build(fresh(), "nesterov").load_state_dict(saved)


@each_form
def test_a_state_with_the_keys_of_schedulers_and_of_other_code_goes_on_exactly(method, form):
    optimizer = method.build([{"params": fresh(), "name": "head", "lr_scale": 0.5, "layer_id": 3}], form, lr=0.1)
    lr_scheduler.LambdaLR(optimizer, lambda t: 1.0)
    optimizer.param_groups[0]["rho"] = 0.05
    run(optimizer, loss=1.0)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    resumed = method.build(copy.deepcopy(optimizer.param_groups[0]["params"]), form)
    resumed.load_state_dict(torch.load(file))
    assert {"name", "lr_scale", "layer_id", "initial_lr", "rho"} <= resumed.param_groups[0].keys()
    assert changed(*(snapshot(run(each, 2, 5, loss=0.5)) for each in (optimizer, resumed))) == set()


# A snapshot never changes


@each_form
def test_later_steps_change_no_scalar_of_a_snapshot(method, form):
    optimizer = method.build([{"params": [p]} for p in fresh()], form, lr=torch.tensor(0.1))
    optimizer.param_groups[0]["extra"] = {"kept": [torch.ones(())]}
    run(optimizer, loss=1e-3)
    taken = optimizer.state_dict()
    before = copy.deepcopy(taken["param_groups"])
    run(optimizer, 2, 3, loss=0.7)
    run(optimizer, 1, 5, loss=float("nan"))
    for group in optimizer.param_groups:
        group["lr"].fill_(0.3)
    optimizer.param_groups[0]["extra"]["kept"][0].fill_(5.0)
    assert plain(taken["param_groups"]) == plain(before)
    optimizer.load_state_dict(taken)
    run(optimizer, 2, 6, loss=0.7)
    assert plain(taken["param_groups"]) == plain(before)


@each_form
def test_steps_after_loading_change_no_buffer_of_the_snapshot(method, form):
    optimizer = run(method.build([{"params": [p]} for p in fresh()], form, lr=0.1), loss=1e-3)
    taken = optimizer.state_dict()
    other = method.build([{"params": [p]} for p in fresh()], form, lr=0.1)
    other.load_state_dict(taken)
    before = copy.deepcopy(taken["state"])
    run(other, 2, 3, loss=0.7)
    assert plain(taken["state"]) == plain(before) == plain(optimizer.state_dict()["state"])
    optimizer.load_state_dict(taken)
    run(optimizer, 2, 6, loss=0.7)
    assert plain(taken["state"]) == plain(before)


# Copies


@pytest.fixture
def group_of_one(tmp_path) -> Any:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    yield dist.new_group([0])
    dist.destroy_process_group()


@each_method
def test_copies_within_the_process_keep_the_process_group(method, group_of_one):
    optimizer = method.build(fresh(), "nesterov", process_group=group_of_one)
    nested = copy.deepcopy({"trainer": [optimizer]})["trainer"][0]
    for twin in (nested, copy.copy(optimizer), copy.deepcopy(nested)):
        assert twin._processes.group is group_of_one
        run(twin, loss=1.0)
    alone = pickle.loads(pickle.dumps(optimizer))
    assert alone._processes.group is None


# The last step


@each_method
def test_the_last_step_of_a_group_that_was_not_in_it_is_a_sentence(method):
    optimizer = method.build(fresh()[:1])
    run(optimizer, 1, loss=1.0)
    optimizer.add_param_group({"params": fresh()[1:]})
    assert float(optimizer.last_step().loss) == 1.0
    for index in (1, -1):
        with refused(RuntimeError, f"last_step({index}) has no result, as the group was not in the last step"):
            optimizer.last_step(index)
    for index in (2, -3, 10):
        with refused(IndexError, f"last_step({index})", "the optimizer has 2 parameter groups"):
            optimizer.last_step(index)
    run(optimizer, 1, loss=0.5)
    assert float(optimizer.last_step(-1).loss) == 0.5


@each_method
def test_the_index_of_the_last_step_is_an_integer(method):
    optimizer = run(method.build(fresh()), 1, loss=1.0)
    assert float(optimizer.last_step(torch.tensor(0)).loss) == 1.0
    for index in ("0", 0.0, None, slice(1)):
        with refused(TypeError, f"last_step() takes the index of a parameter group, but {index!r} was given."):
            optimizer.last_step(index)


@each_method
def test_the_last_step_follows_its_group(method):
    optimizer = method.build([{"params": [p], "lr": lr} for p, lr in zip(fresh(), (1e-3, 2e-3), strict=True)])
    run(optimizer, 1, loss=1e3)
    optimizer.param_groups.reverse()
    rel = 1e-6 if method.hard_cap or method.factor else 1e-2
    unit = float(optimizer.last_step().step_size) / 2e-3 if method.factor else 1.0
    assert float(optimizer.last_step().step_size) == pytest.approx(2e-3 * unit, rel=rel)
    del optimizer.param_groups[0]
    assert float(optimizer.last_step().step_size) == pytest.approx(1e-3 * unit, rel=rel)


class Interrupted(polyak.Constraint):
    armed = False

    def project_(self, params: Any) -> None:
        if self.armed:
            raise KeyboardInterrupt


@each_method
@pytest.mark.parametrize("when", ["second group", "projection"])
def test_after_an_interrupted_step_the_last_step_is_told_or_a_sentence(method, when, monkeypatch):
    omega = Interrupted()
    optimizer = method.build([{"params": [p]} for p in fresh()], constraint=omega)
    run(optimizer, 1, loss=1.0)
    formula, calls = type(optimizer).step_size, []

    def interrupted(self: Any, *args: Any) -> Any:
        calls.append(args)
        if when == "second group" and len(calls) == 2:
            raise KeyboardInterrupt
        return formula(self, *args)

    monkeypatch.setattr(type(optimizer), "step_size", interrupted)
    omega.armed = True
    with pytest.raises(KeyboardInterrupt):
        run(optimizer, 1, loss=0.5)
    assert float(optimizer.last_step(0).loss) == 0.5
    if when == "projection":
        assert float(optimizer.last_step(1).loss) == 0.5
    else:
        with refused(RuntimeError, r"last_step(1) has no result"):
            optimizer.last_step(1)


@each_method
def test_a_scalar_that_it_cannot_be_is_refused_and_nothing_loaded(method):
    optimizer, saved = method.build(fresh()), run(method.build(fresh()), loss=1.0).state_dict()
    before, (group,) = snapshot(optimizer), saved["param_groups"]
    for name in (*optimizer._scalars(optimizer.defaults), "train_mode"):
        for value in ("x", None, math.nan, [1], torch.ones(2, 7), torch.tensor(1j), torch.tensor(math.nan)):
            with refused(ValueError, f"{method.cls.__name__}: the state holds {name}=", "which it cannot be"):
                optimizer.load_state_dict({**saved, "param_groups": [{**group, name: value}]})
            assert changed(before, snapshot(optimizer)) == set()


DAMAGES = {
    "group": lambda saved: saved.update(param_groups=[None]),
    "params": lambda saved: saved["param_groups"][0].pop("params"),
    "params of another type": lambda saved: saved["param_groups"][0].update(params=3),
    "buffers": lambda saved: saved["state"].update({0: None}),
    "buffers of another type": lambda saved: saved["state"].update({0: [1.0]}),
    "method": lambda saved: saved["param_groups"][0].update(polyak_method=torch.ones(2)),
    "count below 0": lambda saved: saved["param_groups"][0].update(skipped_steps=-1),
}


@each_method
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_state_is_refused_and_nothing_loaded(method, damage):
    optimizer, saved = method.build(fresh()), run(method.build(fresh()), loss=1.0).state_dict()
    before = snapshot(optimizer)
    DAMAGES[damage](saved)
    with refused(ValueError, f"{method.cls.__name__}: "):
        optimizer.load_state_dict(saved)
    assert changed(before, snapshot(optimizer)) == set()


@each_buffered
def test_a_buffer_that_a_state_lacks_starts_at_zero(method):
    optimizer = run(method.build(fresh(), method.momenta[-1]), loss=1.0)
    names = optimizer.buffers(optimizer.param_groups[0])
    assert names
    for name in names:
        ends = []
        for zero in (True, False):
            saved = copy.deepcopy(optimizer.state_dict())
            for buffers in saved["state"].values():
                buffers[name].zero_()
                if not zero:
                    del buffers[name]
            other = method.build(fresh(), method.momenta[-1])
            other.load_state_dict(saved)
            ends.append(snapshot(run(other, loss=1.0)))
        assert changed(*ends) == set()
