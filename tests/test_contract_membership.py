"""Which parameters a constraint holds for: those of its group that require a gradient, whatever else changes."""

from __future__ import annotations

import copy
import io
import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

import polyak
from catalogue import each_backend, each_method
from observe import SMALL_BALLS, bits
from polyak._step import torch_hooks

FROZEN = "ignore:.*requires_grad=False has a gradient"
pytestmark = pytest.mark.filterwarnings(SMALL_BALLS)

ROLES = ("used", "unused", "frozen", "frozen with a stale gradient", "frozen without a gradient")


def norm(params: list[nn.Parameter]) -> float:
    return float(torch.cat([p.detach().reshape(-1) for p in params]).norm())


def cast(roles: tuple[str, ...]) -> list[nn.Parameter]:
    """Return one parameter for each role, with the gradient that goes with it."""
    params = []
    for role in roles:
        p = nn.Parameter(torch.full((9,), 2.0))
        p.grad = {"used": -torch.ones(9), "frozen with a stale gradient": torch.zeros(9)}.get(role)
        params.append(p.requires_grad_("frozen" not in role))
    return params


@each_method
@each_backend
@pytest.mark.filterwarnings(FROZEN)
def test_a_ball_holds_for_what_requires_a_gradient_and_for_nothing_else(method, backend, monkeypatch):
    # SAMSPS looks for the modules of its parameters once, which takes a second among the objects of a test run
    monkeypatch.setattr(torch_hooks, "_modules_of", lambda ids: [])
    for roles, cut in itertools.product(itertools.product(ROLES, repeat=3), (1, 2, 4)):
        params = cast(("used", *roles))
        groups = [{"params": part} for part in (params[:cut], params[cut:]) if part]
        optimizer = method.build(groups, lr=1.0, constraint=polyak.L2Ball(7.0), **backend)
        frozen = {p: bits(p) for p in params if not p.requires_grad}
        optimizer.step(loss=100.0)
        assert norm([p for p in params if p.requires_grad]) <= 7.0 * (1 + 1e-6), (roles, cut)
        assert {p: bits(p) for p in frozen} == frozen, (roles, cut)


@pytest.mark.filterwarnings("ignore:.*moves nothing", FROZEN)  # the last one that is left is frozen
def test_a_parameter_may_be_frozen_and_released_between_steps():
    params = cast(("used", "used", "unused"))
    optimizer = polyak.ALIG(params, lr=1.0, momentum=0.9, constraint=polyak.L2Ball(7.0))
    for frozen in (params[0], params[1], params[2]):
        for p in params:
            p.requires_grad_(p is not frozen)
        frozen.grad, before = None, bits(frozen)
        optimizer.step(loss=100.0)
        assert norm([p for p in params if p is not frozen]) <= 7.0 * (1 + 1e-6)
        assert bits(frozen) == before


def _insert_a_copy(groups: list[dict]) -> None:
    new = nn.Parameter(torch.full((4,), 2.0))
    new.grad = -torch.ones(4)
    groups.insert(1, {**groups[0], "params": [new]})


MUTATIONS = {
    "reverse": lambda groups: groups.reverse(),
    "pop the first": lambda groups: groups.pop(0),
    "pop the last": lambda groups: groups.pop(),
    "delete a slice": lambda groups: groups.__delitem__(slice(0, 2)),
    "rotate": lambda groups: groups.append(groups.pop(0)),
    "replace a slice": lambda groups: groups.__setitem__(slice(1, 3), groups[2:0:-1]),
    "replace by copies": lambda groups: groups.__setitem__(slice(None), [dict(group) for group in groups]),
    "insert a copy": _insert_a_copy,
    "sort": lambda groups: groups.sort(key=lambda group: id(group["params"][0])),
}


def _check_sets(groups: list[dict], sets: dict[int, polyak.Constraint | None]) -> None:
    together: list[Tensor] = []
    for group in groups:
        (p,) = group["params"]
        match sets.get(id(p), group.get("constraint", "shared")):
            case None:
                assert p.max() > 2.0
            case polyak.Box(high=high):
                assert p.max() == high
            case polyak.L2Ball(radius=radius):
                assert norm([p]) == pytest.approx(radius)
            case "shared":
                together.append(p)
    if together:
        assert norm(together) <= 3.0 * (1 + 1e-6)


@each_backend
@each_method
@pytest.mark.parametrize("mutate", MUTATIONS.values(), ids=MUTATIONS.keys())
def test_a_constraint_belongs_to_its_group_wherever_the_group_is(method, backend, mutate):
    own = [polyak.Box(-1.0, 0.5), "shared", None, polyak.L2Ball(1.0), "shared"]
    params = cast(("used",) * 5)
    groups = [{"params": [p], "constraint": omega} for p, omega in zip(params, own, strict=True)]
    for group in (groups[1], groups[4]):
        del group["constraint"]
    optimizer = method.build(groups, lr=1.0, constraint=polyak.L2Ball(3.0), **backend)
    for _ in range(2):
        mutate(optimizer.param_groups)
        optimizer.step(loss=100.0)
        _check_sets(optimizer.param_groups, {id(p): omega for p, omega in zip(params, own, strict=True)})


@each_method
@pytest.mark.parametrize("constraint", [None, polyak.L2Ball(3.0), polyak.Box(0.0, 1.0)], ids=repr)
def test_without_groups_a_step_moves_nothing_and_groups_may_come_back(method, constraint):
    params = cast(("used", "used"))
    optimizer = method.build(params, lr=1.0, constraint=constraint)
    optimizer.param_groups.clear()
    before = [bits(p) for p in params]
    assert optimizer.step(loss=2.0) == 2.0
    assert [bits(p) for p in params] == before
    optimizer.add_param_group({"params": params})
    optimizer.step(loss=2.0)
    assert [bits(p) for p in params] != before or constraint is not None


def test_the_same_object_given_twice_is_two_sets():
    ball, params = polyak.L2Ball(1.0), cast(("used", "used", "used"))
    polyak.ALIG([{"params": params[0], "constraint": ball}, {"params": params[1:]}], constraint=ball)
    assert norm(params[:1]) == pytest.approx(1.0)
    assert norm(params[1:]) == pytest.approx(1.0)


def _two_groups() -> tuple[nn.Module, polyak.ALIG]:
    model = nn.Linear(3, 2)
    groups = [{"params": [model.weight], "constraint": polyak.L2Ball(0.1)}, {"params": [model.bias]}]
    return model, polyak.ALIG(groups, lr=1.0, momentum=0.9, constraint=polyak.Box(-0.2, 0.2))


def _grow(model: nn.Module, optimizer: polyak.ALIG) -> tuple[float, float]:
    for p in model.parameters():
        p.grad = -torch.ones_like(p)
    optimizer.step(loss=100.0)
    return norm([model.weight]), float(model.bias.detach().abs().max())


@pytest.mark.parametrize("flatten", [None, False, True], ids=["torch.save", "nested", "flat"])
def test_a_state_holds_no_constraint_and_loading_one_keeps_each_with_its_group(flatten):
    model, optimizer = _two_groups()
    _grow(model, optimizer)
    twin, restored = _two_groups()
    if flatten is None:
        file = io.BytesIO()
        torch.save(optimizer.state_dict(), file)
        file.seek(0)
        restored.load_state_dict(torch.load(file, weights_only=True))
    else:
        options = StateDictOptions(flatten_optimizer_state_dict=flatten)
        state = get_optimizer_state_dict(model, optimizer, options=options)
        set_optimizer_state_dict(twin, restored, state, options=options)
    assert _grow(twin, restored) == (pytest.approx(0.1), pytest.approx(0.2))


def test_a_loaded_state_neither_brings_a_constraint_nor_takes_one():
    bound, free = ([nn.Parameter(torch.full((4,), 2.0))] for _ in range(2))
    ball = polyak.ALIG([{"params": bound, "constraint": polyak.L2Ball(1.0)}])
    none = polyak.ALIG(free)
    states = copy.deepcopy((ball.state_dict(), none.state_dict()))
    none.load_state_dict(states[0])
    ball.load_state_dict(states[1])
    for p, optimizer in ((*bound, ball), (*free, none)):
        p.grad = -torch.ones(4)
        optimizer.step(loss=100.0)
    assert norm(bound) == pytest.approx(1.0)
    assert norm(free) > 4.0
