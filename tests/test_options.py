"""Options that do not exist or have a wrong value: the exception, and one sentence that says what to write instead."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import polyak
from catalogue import METHODS, Method, each_method, each_undecayed
from observe import SMALL_BALLS, changed, give, plain, random_like, refused, snapshot

pytestmark = pytest.mark.filterwarnings(SMALL_BALLS)

NAN, INF = math.nan, math.inf

# What an option must not be, and the words of the sentence that say what it may be.
WRONG: dict[str, tuple[tuple[Any, ...], str]] = {
    "lr": ((-1.0, -INF, NAN, "0.1", None, True, 1j, [0.1]), "number ≥ 0 or a tensor of one such number"),
    "momentum": ((1, 1.0, -0.1, NAN, INF, "0.9", None, True, torch.tensor(0.9)), "a number in [0, 1)"),
    "adjusted_momentum": ((1, 0.0, "yes", None), "True or False"),
    "float32_momentum": ((1, 0.0, "yes", None), "True or False"),
    "eps": ((-1e-8, NAN, INF, "0", None, True), "a finite number ≥ 0"),
    "c": ((0, -0.5, NAN, INF, "0.5", None, True), "a finite number > 0"),
    "gamma": ((0.5, 0, -2, NAN, INF, "2", None), "a finite number ≥ 1"),
    "init_step_size": ((0, -1.0, NAN, "1", None), "a number > 0"),
    "steps_per_epoch": ((0, 0.5, -3, NAN, INF, "10", None), "a number ≥ 1, usually len(data_loader)"),
    "lower_bound": ((NAN, INF, -INF, "0", None, True), "a finite number"),
    "foreach": ((1, "auto", 0.0), "None, True or False"),
    "fused": ((1, "auto", 0.0), "None, True or False"),
    "weight_decay": ((-1e-8, NAN, INF, "0", None, True), "a finite number ≥ 0"),
    "decoupled_weight_decay": ((1, 0.0, "yes", None), "True or False"),
    "bias_correction": ((1, 0.0, "yes", None), "True or False"),
    "learn_lower_bound": ((1, 0.0, "yes", None), "True or False"),
    "betas": ((0.9, (0.9,), (0.9, 1.0), (-0.1, 0.9), ("0.9", 0.9), (0.9, NAN), None), "two numbers in [0, 1)"),
    "beta2": ((1, 1.0, -0.1, NAN, INF, "0.9", None, True), "a number in [0, 1)"),
    "floor": ((-1e-8, NAN, INF, "0", None, True), "a finite number ≥ 0"),
    "final_momentum": ((1, 1.0, -0.1, NAN, INF, "0.9", None, True), "a number in [0, 1)"),
    "norm_beta": ((1, 1.0, -0.1, NAN, INF, "0.9", None, True), "a number in [0, 1)"),
    "anneal_steps": ((-1, 0.5, NAN, INF, "1", None, True), "an integer ≥ 0"),
    "averaging_warmup": ((-1, 0.5, NAN, INF, "1", None, True), "an integer ≥ 0"),
    "r": ((NAN, INF, -INF, "0", None, True), "a finite number"),
    "weight_lr_power": ((-1e-8, NAN, INF, "0", None, True), "a finite number ≥ 0"),
    "norm": (("frobenius", 2, True, ""), "None, 'spectral' or 'adam'"),
    "polar": (("svd", None, 5, True), "'polar-express' or 'newton-schulz'"),
    "polar_steps": ((0, 1.5, NAN, INF, "5", None, True), "an integer ≥ 1"),
    "stale": ((1, 0.0, "yes", None), "True or False"),
    "samples": ((0, 1.5, NAN, INF, "5", None, True), "an integer ≥ 1"),
    "epochs": ((0, 1.5, NAN, INF, "5", None, True), "an integer ≥ 1"),
    "stages": ((0, 1.5, NAN, INF, "5", None, True), "an integer ≥ 1"),
    "slack": ((1, 1.0, -0.1, NAN, INF, "0.9", None, True), "a number in [0, 1)"),
    "delta": ((0, -0.5, NAN, INF, "0.5", True), "None or a finite number > 0"),
    "rho": ((-1e-8, NAN, INF, "0", None, True), "a finite number ≥ 0"),
    "normalized": ((1, 0.0, "yes", None), "True or False"),
    "c0": ((0, -0.5, NAN, INF, "0.5", None, True), "a finite number > 0"),
}
WRONG_OR_NONE = ((1, 1.0, -0.1, NAN, INF, "0.9", True, torch.tensor(0.9)), "None or a number in [0, 1)")
WRONG_TENSORS = (torch.tensor(-1.0), torch.tensor(NAN), torch.ones(2), torch.ones(2, 2), torch.ones(0))

# Options of other optimizers, and what to write instead.
INSTEAD: dict[str, str] = {
    "weight_decay": "polyak.L2Ball(radius)",
    "maximize": "minimise the negated objective",
    "max_lr": "the cap is called lr",
    "eta_max": "the cap is called lr",
    "nesterov": "momentum=0.9 is already Nesterov's",
    "projection_fn": "constraint=polyak.L2Ball(radius)",
    "differentiable": "torch.func",
    "capturable": "every step is capturable",
    "momentm": "did you mean momentum?",
    "lower_bnd": "did you mean lower_bound?",
    "xyz": "there are ",
}
TAKEN_BY_GROUPS = {"max_lr", "eta_max", "capturable", "xyz"}  # other code may mean something by them


def fresh(*sizes: int) -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(size)) for size in sizes or (2,)]


def wrong(method: Method, option: str) -> tuple[tuple[Any, ...], str]:
    """Return what an option must not be; one that is not listed is tried as another of its range."""
    if any(trial.get(option, 0.0) is None for trial in method.trials):
        return WRONG_OR_NONE
    if option in WRONG:
        return WRONG[option]
    allowed = method.cls._ranges[option].words
    return next(entry for entry in WRONG.values() if allowed.startswith(entry[1]))


def cases() -> Iterator[Any]:
    for method in METHODS:
        for option in method.defaults:
            values, words = wrong(method, option)
            for value in values:
                yield pytest.param(method, option, value, words, id=f"{method.name}-{option}={value}")


@pytest.mark.parametrize(("method", "option", "value", "words"), list(cases()))
def test_a_wrong_value_is_refused_for_all_groups_and_for_one(method, option, value, words):
    sentence = (method.cls.__name__, f"{option}={value!r}", "is not allowed, it must be", words)
    with refused(ValueError, *sentence):
        method.build(fresh(), **{option: value})
    with refused(ValueError, *sentence):
        method.build([{"params": fresh(), option: value}])


@each_method
@pytest.mark.parametrize("lr", WRONG_TENSORS, ids=lambda lr: f"{tuple(lr.shape)}")
def test_a_tensor_that_is_no_cap_is_refused(method, lr):
    with refused(ValueError, "lr=", "is not allowed, it must be a", "number ≥ 0 or a tensor of one such number"):
        method.build(fresh(), lr=lr)


@each_method
@pytest.mark.parametrize(("name", "hint"), INSTEAD.items())
def test_an_option_that_does_not_exist_is_refused(method, name, hint):
    if name in method.defaults or (name == "momentm" and "momentum" not in method.defaults):
        pytest.skip("it is an option of this method, or no near miss of one")
    sentence = (f"{method.cls.__name__} has no option {name!r}", hint)
    with refused(TypeError, *sentence):
        method.build(fresh(), **{name: 0.1})
    if name in TAKEN_BY_GROUPS:
        method.build([{"params": fresh(), name: 0.1}])
        return
    with refused(ValueError, *sentence):
        method.build([{"params": fresh(), name: 0.1}])


@each_method
@pytest.mark.parametrize(
    "typo", ["momentun", "Momentum", "LR", "lrr", "l_r", "esp", "epss", "lowerbound", "lower_bond", "foreahc", "fuse"]
)
def test_a_misspelt_option_is_refused_for_all_groups_and_for_one(method, typo):
    if {"momentun": "momentum", "Momentum": "momentum", "esp": "eps", "epss": "eps"}.get(
        typo, "lr"
    ) not in method.defaults:
        pytest.skip("it is no near miss of an option of this method")
    with refused(TypeError, f"{method.cls.__name__} has no option {typo!r}"):
        method.build(fresh(), **{typo: 0.1})
    with refused(ValueError, f"{method.cls.__name__} has no option {typo!r}: did you mean"):
        method.build([{"params": fresh(), typo: 0.1}])
    optimizer = method.build(fresh())
    with refused(ValueError, f"has no option {typo!r}"):
        optimizer.add_param_group({"params": fresh(), typo: 0.1})


FOREIGN: dict[str, Any] = {
    "name": "encoder",
    "group_name": "encoder/no_decay",
    "lr_scale": 0.75,
    "lr_mult": 2.0,
    "layer_id": 3,
    "rho": 0.05,
    "adaptive": True,
    "max_lr": 0.1,
    "min_lr": 0.0,
    "swa_lr": 0.05,
    "base_momentum": 0.8,
    "max_momentum": 0.95,
    "initial_lr": 0.1,
    "betas": (0.9, 0.999),
    "dampening": 0.0,
    "maximize": False,
    "nesterov": False,
    "differentiable": False,
    "capturable": False,
    "weight_sum": torch.zeros(()),
    "steps": 0,
}


@each_method
def test_a_group_keeps_the_keys_of_other_code(method):
    """SAM, layer decay, Gaussian splatting and named groups put them there."""
    first = method.build([{"params": fresh(), **FOREIGN}], lr=0.1)
    late = method.build(fresh(), lr=0.1)
    late.add_param_group({"params": fresh(), **FOREIGN})
    for group in (first.param_groups[0], late.param_groups[1]):
        assert {key: group[key] for key in FOREIGN} == FOREIGN
        give(group["params"], torch.ones(2))
    assert float(first.step(loss=1.0)) == 1.0


@each_method
@pytest.mark.parametrize("zero", [0, 0.0, False])
def test_a_constructor_takes_a_weight_decay_of_zero_and_a_cap_of_zero(method, zero):
    """Factories of optimizers always pass a weight decay, schedules may begin at 0."""
    params = fresh()
    optimizer = method.build(params, weight_decay=zero, lr=0.0)
    optimizer.add_param_group({"params": fresh(), "lr": torch.zeros(1)})
    give(params, torch.ones(2))
    optimizer.step(loss=1.0)
    assert params[0].tolist() == [1.0, 1.0]
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    optimizer.step(loss=1.0)
    assert params[0].tolist() != [1.0, 1.0]


@each_method
def test_the_list_of_options_names_every_option(method):
    with pytest.raises(TypeError, match="has no option 'xyz'") as caught:
        method.build(fresh(), xyz=1)
    assert all(name in str(caught.value) for name in (*method.defaults, "constraint"))
    assert "params" not in str(caught.value)


@each_method
def test_options_are_given_by_name(method):
    with pytest.raises(TypeError, match=r"takes only params and lr by position[^\n]*\.$"):
        method.cls(fresh(), 0.1, 0.9)


@each_method
@pytest.mark.parametrize("zero", [0, 0.0])
def test_frameworks_may_put_a_weight_decay_of_zero_into_a_group(method, zero):
    """Trainers split every model into a group with and one without decay."""
    optimizer = method.build([{"params": fresh(), "weight_decay": zero}, {"params": fresh()}])
    give([p for group in optimizer.param_groups for p in group["params"]], torch.ones(2), torch.ones(2))
    optimizer.step(loss=1.0)


@each_undecayed
@pytest.mark.parametrize("decay", [1e-4, -1, NAN, "0", None, torch.ones(2)], ids=str)
def test_any_other_weight_decay_is_refused(method, decay):
    with refused(ValueError, "has no option 'weight_decay'", "constraint=polyak.L2Ball(radius)", "≈ 0"):
        method.build([{"params": fresh(), "weight_decay": decay}])


GROUPS: dict[str, tuple[Callable[[], dict[str, Any]], type[Exception], tuple[str, ...]]] = {
    "unknown": (lambda: {"params": fresh(), "lower_bnd": 0.9}, ValueError, ("has no option 'lower_bnd'",)),
    "value": (lambda: {"params": fresh(), "lr": -1.0}, ValueError, ("lr=-1.0", "number ≥ 0")),
    "decay": (lambda: {"params": fresh(), "weight_decay": -0.1}, ValueError, ("weight_decay",)),
    "constraint": (
        lambda: {"params": fresh(), "constraint": 5.0},
        TypeError,
        ("constraint is a float", "polyak.L2Ball("),
    ),
    "class": (
        lambda: {"params": fresh(), "constraint": polyak.L2Ball},
        TypeError,
        ("the class L2Ball",),
    ),
    "integers": (
        lambda: {"params": [torch.ones(2, dtype=torch.int64)]},
        TypeError,
        ("leave the torch.int64 tensor out",),
    ),
    "8 bits": (
        lambda: {"params": [torch.ones(2).to(torch.float8_e5m2)]},
        TypeError,
        ("leave the torch.float8_e5m2 tensor out",),
    ),
    "flags": (lambda: {"params": [torch.ones(2, dtype=torch.bool)]}, TypeError, ("leave the torch.bool tensor out",)),
    "conjugate view": (
        lambda: {"params": [torch.ones(2, dtype=torch.complex64).conj()]},
        TypeError,
        ("of shape (2,) is a conjugate or negative view", "p.resolve_conj()"),
    ),
    "negative view": (
        lambda: {"params": [torch.ones(2, dtype=torch.complex64).conj().imag]},
        TypeError,
        ("is a conjugate or negative view",),
    ),
}


@each_method
@pytest.mark.parametrize(("group", "error", "parts"), GROUPS.values(), ids=GROUPS.keys())
def test_a_wrong_group_is_refused_and_the_optimizer_is_as_before(method, group, error, parts):
    params = fresh()
    optimizer = method.build(params, "nesterov", constraint=polyak.L2Ball(1.0))
    before, state = snapshot(optimizer), optimizer.state_dict()
    with refused(error, *parts):
        optimizer.add_param_group(group())
    assert changed(before, snapshot(optimizer)) == set()
    assert plain(optimizer.state_dict()) == plain(state)
    with refused(error, *parts):
        method.build([group()])
    give(params, torch.ones(2))
    optimizer.step(loss=1.0)


@each_method
def test_a_group_taken_from_an_optimizer_fits_into_another(method):
    """Its options are the group's own, but what it remembers belongs to the optimizer it comes from."""
    source = method.build(fresh(), "nesterov", lr=0.3)
    give(source.param_groups[0]["params"], torch.ones(2))
    source.step(loss=0.3)
    target = method.build(fresh(3), *["nesterov" for name in method.cls.shared if name == "momentum"])
    target.add_param_group(dict(source.param_groups[0]))
    group, first = target.param_groups[1], method.build(fresh(), "nesterov").param_groups[0]
    assert (group["lr"], group.get("momentum")) == (0.3, source.defaults.get("momentum"))
    assert group["step_size"] == 0 < source.param_groups[0]["step_size"]
    assert plain({name: group[name] for name in first if isinstance(first[name], torch.Tensor)}) == plain(
        {name: value for name, value in first.items() if isinstance(value, torch.Tensor)}
    )


@each_method
@pytest.mark.parametrize(
    "constraint", [5.0, "l2", polyak.L2Ball, lambda params: None, nn.Identity()], ids=lambda c: type(c).__name__
)
def test_what_is_no_constraint_is_refused(method, constraint):
    with refused(
        TypeError, method.cls.__name__, "constraint is", "must be an object such as polyak.L2Ball(", "or None"
    ):
        method.build(fresh(), constraint=constraint)


def test_every_option_of_every_method_has_wrong_values_here():
    assert set().union(*(method.defaults for method in METHODS)) == WRONG.keys()


def test_the_catalogue_rows_are_methods():
    assert all(isinstance(method, Method) and issubclass(method.cls, polyak.PolyakOptimizer) for method in METHODS)


# Values of any type whatever, in constructors and later

ODD = (10**400, -(10**400), 10**5000, "x" * 1000, "a\nb", np.array([0.5, 0.6]), np.bool_(True), 1j, object(), {}, {0.5})
ODD += (range(2), len, torch.tensor(0.5 + 1j), torch.tensor(True), torch.tensor([0.5, 0.6]), torch.ones(1).to_sparse())


@each_method
def test_a_value_of_any_type_is_refused_in_a_short_sentence(method):
    for option in [*method.defaults, "sync_loss"]:
        for value in ODD:
            with refused(ValueError, f"{method.cls.__name__}: {option}=", "is not allowed, it must be"):
                method.build(fresh(), **{option: value})


@each_method
@pytest.mark.parametrize("value", [0, "world", -100, torch.ones(1), torch.distributed])
def test_what_is_no_process_group_is_refused(method, value):
    with refused(TypeError, f"{method.cls.__name__}: process_group is of type", "new_group()"):
        method.build(fresh(), process_group=value)


@each_method
@pytest.mark.parametrize("kind", [np.float32, np.float64, Fraction, int, np.int64, torch.tensor])
def test_numbers_of_any_kind_are_kept_as_numbers_that_a_step_and_a_checkpoint_can_take(method, kind):
    for option, default in method.defaults.items():
        if (
            isinstance(default, bool)
            or not isinstance(default, int | float)
            or (kind is torch.tensor and option != "lr")
        ):
            continue
        number = 0.5 if kind in (np.float32, np.float64, Fraction) else 3
        if not method.cls._ranges[option].test(number):
            continue
        optimizer = method.build(params := fresh(2, 3), **{option: kind(number)})
        kept = optimizer.param_groups[0][option]
        assert type(kept) in (int, float, torch.Tensor), option
        assert kept == number
        for _ in range(2):
            give(params, *random_like(params))
            optimizer.step(loss=1.0)
        file = io.BytesIO()
        torch.save(optimizer.state_dict(), file)
        file.seek(0)
        optimizer.load_state_dict(torch.load(file, weights_only=True))


@pytest.mark.parametrize("cls", [polyak.SmoothSPS, polyak.SmoothMomSPS])
def test_a_first_step_size_that_is_an_integer_may_become_a_fraction(cls):
    optimizer = cls(
        params := fresh(), steps_per_epoch=1, init_step_size=1, **({} if cls is polyak.SmoothSPS else {"momentum": 0})
    )
    for _ in range(2):
        give(params, torch.ones(2))
        optimizer.step(loss=0.01)
        assert optimizer.param_groups[0]["previous_step_size"] == optimizer.param_groups[0]["step_size"] > 0


def test_a_cap_in_a_tensor_of_integers_follows_a_schedule():
    optimizer = polyak.ALIG(fresh(), lr=torch.tensor(1))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    optimizer.step(loss=1.0, grad_sq_norm=1.0)
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.5


@each_method
def test_a_wrong_value_that_a_group_is_given_later_is_refused_and_nothing_moves(method):
    params = fresh(2, 3)
    optimizer = method.build([{"params": params[:1]}, {"params": params[1:]}])
    give(params, *random_like(params))
    optimizer.step(loss=1.0)
    before = snapshot(optimizer)
    for option in method.defaults:
        group, (values, _) = optimizer.param_groups[1], wrong(method, option)
        for value in values:
            right, group[option] = group[option], value
            with refused(ValueError, f"{method.cls.__name__}: {option}=", " is "):
                optimizer.step(loss=1.0)
            group[option] = right
    assert changed(before, snapshot(optimizer)) == set()
    optimizer.step(loss=1.0)


@each_method
@pytest.mark.parametrize("lr", [INF, torch.tensor(INF)], ids=["number", "tensor"])
def test_weight_decay_needs_a_finite_cap_later_as_well(method, lr):
    if "weight_decay" not in method.defaults:
        return
    optimizer = method.build(params := fresh(2, 3), weight_decay=0.1, lr=0.1)
    for group in ({"rho": 0.05}, {}):  # a wrapper's key changes nothing
        optimizer.param_groups[0] |= {"lr": lr, **({} if "rho" in method.defaults else group)}
        give(params, *random_like(params))
        if method.defaults.keys() & {"floor", "rho", "samples"}:  # where the decay is multiplied by γ
            optimizer.step(loss=1.0)
            continue
        words = "lr=" if method.factor else "weight_decay needs a finite lr"
        with refused(ValueError, f"{method.cls.__name__}: {words}"):
            optimizer.step(loss=1.0)
    assert all(bool(p.isfinite().all()) for p in params)
