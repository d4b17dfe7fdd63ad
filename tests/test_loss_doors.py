"""The three doors for the loss: `loss=`, a closure, a watched loss; with accumulation and loss scaling."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import polyak
from catalogue import each_form, each_method
from observe import changed, give, moved, random_like, snapshot
from problem import Problem

Optimizer = polyak.PolyakOptimizer


def model_and(method: Any, form: str = "none", **options: Any) -> tuple[nn.Linear, Optimizer]:
    torch.manual_seed(0)
    model = nn.Linear(3, 1).double()
    return model, method.build(model.parameters(), form, **options)


def inputs(seed: int, rows: int = 4) -> Tensor:
    return torch.randn(rows, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def objective(model: nn.Module, seed: int = 0) -> Tensor:
    return (model(inputs(seed)) - 1.0).square().mean()


def by_keyword(model: nn.Module, optimizer: Optimizer) -> Any:
    optimizer.zero_grad()
    loss = objective(model)
    loss.backward()
    return optimizer.step(loss=loss)


def by_closure(model: nn.Module, optimizer: Optimizer) -> Any:
    def closure() -> Tensor:
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        loss = objective(model)
        loss.backward()
        return loss

    with torch.no_grad():
        return optimizer.step(closure)


def by_closure_that_only_tells(model: nn.Module, optimizer: Optimizer) -> Any:
    optimizer.zero_grad()
    objective(model).backward()
    return optimizer.step(closure=lambda: objective(model))


def by_closure_that_tells_a_number(model: nn.Module, optimizer: Optimizer) -> Any:
    optimizer.zero_grad()
    objective(model).backward()
    return optimizer.step(lambda: objective(model).item())


def by_watching(model: nn.Module, optimizer: Optimizer) -> Any:
    loss = optimizer.watch(objective(model))
    optimizer.zero_grad()  # between the forward and the backward pass, as many loops have it
    loss.backward()
    return optimizer.step()


def by_watching_in_a_closure_that_tells_something_else(model: nn.Module, optimizer: Optimizer) -> Any:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = optimizer.watch(objective(model))
        loss.backward()
        return 100 * loss

    return optimizer.step(closure)


DOORS: dict[str, Callable[[nn.Module, Optimizer], Any]] = {
    "keyword": by_keyword,
    "closure": by_closure,
    "closure that only tells": by_closure_that_only_tells,
    "closure that tells a number": by_closure_that_tells_a_number,
    "watch": by_watching,
    "watch in a closure": by_watching_in_a_closure_that_tells_something_else,
}


@each_form
@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS.keys())
def test_every_door_leads_to_the_same_step(method, form, door):
    (model, optimizer), (twin, reference) = model_and(method, form), model_and(method, form)
    for _ in range(3):
        expected = by_keyword(twin, reference)
        value = door(model, optimizer)
        assert (value.dim(), value.requires_grad) == (0, False)
        torch.testing.assert_close(value, expected, rtol=1e-15, atol=0)
    torch.testing.assert_close(snapshot(optimizer), snapshot(reference), rtol=1e-12, atol=0)
    assert torch.equal(optimizer.last_step().loss, value)


@each_method
def test_a_closure_is_called_once_and_first(method):
    params, calls = [nn.Parameter(torch.ones(2))], []
    optimizer = method.build(params)

    def closure() -> float:
        calls.append(params[0].tolist())
        give(params, torch.ones(2))
        return 0.5

    assert float(optimizer.step(closure, loss=None)) == 0.5
    assert calls == [[1.0, 1.0]]
    assert params[0].tolist() != [1.0, 1.0]


LOSSES = {
    "float": 0.5,
    "int": 2,
    "numpy": np.float32(0.5),
    "0-dim": torch.tensor(0.5),
    "one element": torch.tensor([0.5]),
    "matrix": torch.tensor([[0.5]]),
    "double": torch.tensor(0.5, dtype=torch.float64),
    "half": torch.tensor(0.5, dtype=torch.bfloat16),
    "integer": torch.tensor(2),
    "with a graph": torch.tensor(0.5, requires_grad=True),
}


@each_method
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_the_loss_may_be_any_single_real_number(method, loss):
    ends = []
    for given in (loss, float(loss.detach() if isinstance(loss, Tensor) else loss)):
        params = [nn.Parameter(torch.ones(2))]
        optimizer = method.build(params)
        give(params, torch.ones(2))
        value = optimizer.step(None, loss=given)
        assert (value.dtype, value.dim(), value.requires_grad) == (torch.float32, 0, False)
        ends.append(snapshot(optimizer))
    assert changed(*ends) == set()


# Watching


@each_method
def test_watching_returns_the_very_tensor_and_passes_evaluation_through(method):
    model, optimizer = model_and(method)
    loss = objective(model)
    assert optimizer.watch(loss) is loss
    with torch.no_grad():
        value = objective(model)
        assert optimizer.watch(value) is value
    assert optimizer.step() is None  # as torch's optimizers, where no parameter has a gradient
    objective(model).backward()
    with pytest.raises(RuntimeError, match="needs the loss"):
        optimizer.step()


@each_form
@pytest.mark.parametrize("parts", [4, 3])
def test_under_accumulation_the_watched_loss_is_the_objective(method, form, parts):
    model, optimizer = model_and(method, form)
    optimizer.zero_grad()
    losses = []
    for seed in range(parts):
        loss = optimizer.watch(objective(model, seed))
        (loss / parts).backward()
        losses.append(loss.item() * (1.0 / parts))
    twin, reference = model_and(method, form)
    torch.stack([objective(twin, seed) for seed in range(parts)]).mean().backward()
    value = optimizer.step()
    assert value.item() == sum(losses)
    reference.step(loss=value)
    torch.testing.assert_close(snapshot(optimizer), snapshot(reference), rtol=1e-12, atol=0)


@each_method
def test_a_watched_low_precision_loss_is_summed_in_float32(method):
    w = nn.Parameter(torch.ones((), dtype=torch.bfloat16))
    optimizer = method.build([w])
    for _ in range(3):
        (optimizer.watch(w * 1.0) / 3).backward()
    third = torch.tensor(1 / 3, dtype=torch.bfloat16).float()
    assert optimizer.step() == 3 * third


@each_method
def test_a_step_uses_a_watched_loss_once_and_zero_grad_drops_it(method):
    model, optimizer = model_and(method)
    optimizer.watch(objective(model)).backward()
    optimizer.step()
    with pytest.raises(RuntimeError, match="needs the loss"):
        optimizer.step()
    optimizer.watch(objective(model)).backward()
    optimizer.zero_grad(set_to_none=False)
    assert all(not p.grad.any() for p in model.parameters())
    with pytest.raises(RuntimeError, match="needs the loss"):
        optimizer.step()


@each_method
def test_a_loss_that_is_given_comes_before_a_watched_one_which_is_then_forgotten(method):
    model, optimizer = model_and(method)
    optimizer.watch(objective(model)).backward()
    assert optimizer.step(loss=0.25) == 0.25
    with pytest.raises(RuntimeError, match="needs the loss"):
        optimizer.step()


# Loss scaling


def scaled_step(door: str, model: nn.Module, optimizer: Optimizer, scaler: Any, factor: float = 1.0) -> None:
    optimizer.zero_grad()
    loss = factor * objective(model)
    if door == "watch":
        loss = optimizer.watch(loss, scaler)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer, **({"loss": loss} if door == "keyword" else {}))
    scaler.update()


@each_form
@pytest.mark.parametrize("door", ["keyword", "watch"])
def test_loss_scaling_changes_nothing(method, form, door):
    (model, optimizer), (twin, reference) = model_and(method, form), model_and(method, form)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    for _ in range(4):
        scaled_step(door, model, optimizer, scaler)
        by_keyword(twin, reference)
    torch.testing.assert_close(snapshot(optimizer), snapshot(reference), rtol=1e-12, atol=0)
    assert scaler.get_scale() == 4096.0


@each_form
@pytest.mark.parametrize("door", ["keyword", "watch"])
def test_a_step_that_the_scaler_skips_leaves_no_trace(method, form, door):
    model, optimizer = model_and(method, form)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaled_step(door, model, optimizer, scaler)
    before = snapshot(optimizer)
    scaled_step(door, model, optimizer, scaler, factor=math.inf)
    assert changed(before, snapshot(optimizer)) == set()
    assert scaler.get_scale() == 512.0
    scaled_step(door, model, optimizer, scaler)
    assert moved(before, snapshot(optimizer)) != set()
    assert torch.isfinite(optimizer.last_step().loss)


@each_method
def test_a_scaler_that_is_off_is_no_scaler(method):
    (model, optimizer), (twin, reference) = model_and(method), model_and(method)
    scaled_step("watch", model, optimizer, torch.amp.GradScaler("cpu", enabled=False))
    by_keyword(twin, reference)
    torch.testing.assert_close(snapshot(optimizer), snapshot(reference), rtol=1e-12, atol=0)


# What no door lets through

REFUSED: dict[str, tuple[Callable[[Optimizer], Any], type[Exception], str]] = {
    "a vector": (
        lambda o: o.step(loss=torch.ones(2)),
        ValueError,
        r"its shape is \(2,\): take the mean",
    ),
    "nothing in it": (lambda o: o.step(loss=torch.ones(0)), ValueError, r"its shape is \(0,\)"),
    "complex": (lambda o: o.step(loss=torch.ones((), dtype=torch.cfloat)), TypeError, r"complex: pass its \.real"),
    "text": (lambda o: o.step(loss="0.5"), TypeError, "a str was given"),
    "a list": (lambda o: o.step(loss=[0.5]), TypeError, "a list was given"),
    "both": (lambda o: o.step(lambda: 1.0, loss=1.0), TypeError, "both a closure and loss=: give one"),
    "positional": (lambda o: o.step(torch.tensor(1.0)), TypeError, r"a Tensor was given: write step\(loss=loss\)"),
    "none": (lambda o: o.step(), RuntimeError, r"optimizer\.step\(loss=loss\).*closure.*watch\(loss\)"),
    "none from a closure": (lambda o: o.step(lambda: None), RuntimeError, "needs the loss"),
    "a vector from a closure": (lambda o: o.step(lambda: torch.ones(3)), ValueError, r"shape is \(3,\)"),
    "a number watched": (lambda o: o.watch(0.5), TypeError, "before backward, but a float was given"),
    "a vector watched": (lambda o: o.watch(torch.ones(2)), ValueError, r"shape is \(2,\)"),
    "a complex loss watched": (lambda o: o.watch(torch.ones((), dtype=torch.cfloat)), TypeError, "complex"),
    "a vector as bound": (
        lambda o: o.step(loss=1.0, lower_bound=torch.ones(2)),
        ValueError,
        r"lower_bound.*\(2,\): pass the mean of the samples' bounds",
    ),
    "a loss without values": (lambda o: o.step(loss=torch.ones(1, device="meta")), ValueError, "meta device"),
    "a sparse loss": (lambda o: o.step(loss=torch.ones(1).to_sparse()), TypeError, "must be dense"),
    "a bound without values": (
        lambda o: o.step(loss=1.0, lower_bound=torch.ones((), device="meta")),
        ValueError,
        "meta",
    ),
    "a sparse bound": (
        lambda o: o.step(loss=1.0, lower_bound=torch.ones(1).to_sparse()),
        TypeError,
        "lower_bound.*dense",
    ),
    "text as bound": (lambda o: o.step(loss=1.0, lower_bound="0"), TypeError, "lower_bound.*a str was given"),
}


OWN_WORDS = {  # of methods that need more than a loss
    ("SAMSPS", "none"): r"needs the loss: write optimizer\.step\(closure\)",
    ("ALIGPlus", "none"): r"needs the loss: write optimizer\.step\(loss=losses, indices=indices\)",
}


@each_method
@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_loss_is_refused_in_one_sentence_and_nothing_moves(method, what):
    call, error, message = REFUSED[what]
    message = OWN_WORDS.get((method.name, what), message)
    params = Problem.make().params()
    optimizer = method.build(params)
    give(params, *random_like(params))
    before = snapshot(optimizer)
    with pytest.raises(error, match=message) as caught:
        call(optimizer)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")
    assert {name for name in changed(before, snapshot(optimizer)) if name in before} == set()


@each_method
@pytest.mark.parametrize("number", [10**400, -(10**400), 10**5000], ids=["large", "below 0", "of 5001 digits"])
def test_an_integer_that_no_float_holds_is_infinite_and_moves_nothing(method, number):
    params = Problem.make().params()
    optimizer = method.build(params)
    give(params, *random_like(params))
    before = snapshot(optimizer)
    optimizer.step(loss=number)
    assert {each for each in changed(before, snapshot(optimizer)) if each.startswith("parameter")} == set()
    assert optimizer.param_groups[0]["skipped_steps"] == 1
    optimizer.step(loss=1.0, lower_bound=number)
