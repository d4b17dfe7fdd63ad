"""What torch does to every optimizer: hooks, printing, compiling, and methods that others write on the same base."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import polyak
from catalogue import IN_ONE_GRAPH, each_form, each_method
from observe import changed, give, random_like, snapshot
from polyak._backend.scalars import minimum


def fresh() -> list[nn.Parameter]:
    return [nn.Parameter(value) for value in random_like([torch.empty(3), torch.empty(2)], seed=7)]


@each_form
def test_a_pre_hook_may_bring_the_loss(method, form):
    plain, hooked = method.build(fresh(), form), method.build(fresh(), form)
    hooked.register_step_pre_hook(lambda optimizer, args, kwargs: (args, {**kwargs, "loss": torch.tensor(0.7)}))
    for optimizer, given in ((plain, {"loss": 0.7}), (hooked, {})):
        params = optimizer.param_groups[0]["params"]
        give(params, *random_like(params))
        optimizer.step(**given)
    assert changed(snapshot(plain), snapshot(hooked)) == set()


@each_method
def test_hooks_run_around_the_step_and_can_be_removed(method):
    params, calls = fresh(), []
    optimizer = method.build(params)
    handles = [
        optimizer.register_step_pre_hook(lambda *_: calls.append("before")),
        optimizer.register_step_post_hook(lambda o, *_: calls.append(float(o.last_step().loss))),
        register_optimizer_step_pre_hook(lambda *_: calls.append("before any")),
        register_optimizer_step_post_hook(lambda *_: calls.append("after any")),
    ]
    give(params, *random_like(params))
    optimizer.step(loss=0.5)
    for handle in handles:
        handle.remove()
    optimizer.step(loss=0.25)
    assert sorted(map(str, calls)) == ["0.5", "after any", "before", "before any"]
    assert calls.index("before") < calls.index(0.5)


@each_method
def test_a_profiler_finds_the_step_under_the_name_torch_gives_it(method):
    params = fresh()
    optimizer = method.build(params)
    give(params, *random_like(params))
    optimizer.step(loss=0.5)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as found:
        optimizer.step(loss=0.25)
    names = [event.name for event in found.events()]
    assert names.count(f"Optimizer.step#{type(optimizer).__name__}.step") == 1


@each_method
@pytest.mark.parametrize("enabled", [True, False], ids=["grad", "no grad"])
@pytest.mark.parametrize("hooked", [True, False], ids=["hooked", "not hooked"])
def test_a_step_computes_without_gradients_and_leaves_the_mode_as_it_was(method, enabled, hooked):
    params = fresh()
    optimizer = method.build(params)
    if hooked:
        optimizer.register_step_post_hook(lambda *_: None)
    with torch.set_grad_enabled(enabled):
        give(params, *random_like(params))
        loss = params[0].square().sum()
        assert not optimizer.step(loss=loss).requires_grad
        assert torch.is_grad_enabled() == enabled
        with pytest.raises(ValueError, match="one element"):
            optimizer.step(loss=torch.ones(2))
        assert torch.is_grad_enabled() == enabled


@each_method
def test_hooks_on_the_state_dict_run(method):
    optimizer = method.build(fresh())
    optimizer.register_state_dict_post_hook(lambda o, state: {**state, "note": "mine"})
    optimizer.register_load_state_dict_pre_hook(lambda o, state: {k: v for k, v in state.items() if k != "note"})
    state = optimizer.state_dict()
    assert state["note"] == "mine"
    optimizer.load_state_dict(state)


@each_method
def test_an_optimizer_prints_its_options_and_its_step_size(method):
    text = repr(method.build(fresh(), lr=0.25))
    assert text.startswith(f"{method.cls.__name__} (")
    assert all(name in text for name in (*method.defaults, "step_size", "skipped_steps", "0.25"))


SOON = ("ALIG", "MoMoAdam")  # compiling takes seconds: the others are slow tests
COMPILED = [pytest.param(m, id=m.name, marks=() if m.name in SOON else pytest.mark.slow) for m in IN_ONE_GRAPH]


@pytest.mark.parametrize("method", COMPILED)
def test_a_compiled_step_is_the_same_step(method):
    """Compiled code cannot look at a bad loss, so it moves every parameter by nothing instead of not moving any."""
    torch._dynamo.reset()
    form = method.momenta[-1]
    eager, compiled = (method.build(fresh(), form, constraint=polyak.L2Ball(2.5)) for _ in range(2))
    with warnings.catch_warnings():  # torch's own, from inside Dynamo
        warnings.simplefilter("ignore")
        fast = torch.compile(compiled.step, backend="aot_eager")
        for t, loss in enumerate((1.0, 0.5, math.nan, 0.25, math.inf)):
            for optimizer, step in ((eager, eager.step), (compiled, fast)):
                params = optimizer.param_groups[0]["params"]
                give(params, *random_like(params, seed=t))
                step(loss=torch.tensor(loss))
    for name, value in snapshot(eager).items():
        torch.testing.assert_close(snapshot(compiled)[name], value)
    assert int(compiled.last_step().skipped_steps) == 2


class Constant(polyak.PolyakOptimizer):
    """A method that others could write: the step size is its cap until memory says that it has waited enough."""

    def __init__(self, params: Any, lr: float = 0.1, *, wait: int = 0, constraint: Any = None) -> None:
        super().__init__(params, lr, wait=wait, constraint=constraint)

    def memory(self, group: Mapping[str, Any]) -> dict[str, float]:
        return {"waited": group["wait"]}

    def step_size(self, line: polyak.Line, group: dict[str, Any]) -> tuple[Tensor, float]:
        group["waited"] = group["waited"] + 1
        return torch.ones_like(line.value), group["lr"]


class Evaluating(Constant):
    """A step of another author's around the library's, which computes the gradient itself."""

    def step(self, loss: Any) -> Tensor | None:  # type: ignore[override]
        value = loss()
        value.backward()
        return super().step(loss=value)


class Loose(Constant):
    """A constructor that takes any option, so that the names are only checked in the groups."""

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, **options)


def test_a_step_around_the_step_may_compute_gradients():
    w = nn.Parameter(torch.tensor([3.0]))
    optimizer = Evaluating([w])
    for _ in range(2):
        optimizer.zero_grad()
        optimizer.step(lambda: (2 * w).sum())
    assert w.item() == pytest.approx(3.0 - 2 * 0.1 * 2)


def test_a_method_of_another_author_has_the_whole_contract():
    params = fresh()
    optimizer = Constant([{"params": params[:1], "wait": 4}, {"params": params[1:]}], constraint=polyak.L2Ball(9.0))
    start = [p.detach().clone() for p in params]
    give(params, *random_like(params))
    optimizer.step(loss=float("nan"))
    optimizer.step(loss=1.0)
    for p, x in zip(params, start, strict=True):
        torch.testing.assert_close(p.detach(), x - 0.1 * p.grad)
    assert [float(group["waited"]) for group in optimizer.param_groups] == [5.0, 1.0]
    twin = copy.deepcopy(optimizer)
    assert changed(snapshot(optimizer), snapshot(twin)) == set()


class OnTensors(polyak.PolyakOptimizer):
    """SmoothSPS with torch's own functions, which take no plain numbers."""

    def __init__(self, params: Any, lr: float = 0.1, momentum: float = 0.4) -> None:
        super().__init__(params, lr, momentum=momentum)

    def memory(self, group: Mapping[str, Any]) -> dict[str, float]:
        return {"previous_step_size": 1.0}

    def step_size(self, line: polyak.Line, group: dict[str, Any]) -> tuple[Tensor, Any]:
        cap = torch.clamp(1.1 * group["previous_step_size"], max=group["lr"])
        ratio = line.gap / line.slope
        group["previous_step_size"] = torch.minimum(ratio, cap)
        return ratio, cap


class OnNumbers(OnTensors):
    """The same on whatever comes."""

    takes_numbers = True

    def step_size(self, line: polyak.Line, group: dict[str, Any]) -> tuple[Any, Any]:
        cap = minimum(1.1 * group["previous_step_size"], group["lr"])
        ratio = line.gap / line.slope
        group["previous_step_size"] = minimum(ratio, cap)
        return ratio, cap


@pytest.mark.parametrize(
    "lr", [0.1, 1e9, math.inf, torch.tensor(0.1), torch.tensor(-1.0), torch.tensor(math.nan)], ids=str
)
def test_numbers_and_tensors_make_the_same_steps(lr):
    pair = [cls(fresh(), lr=0.1) for cls in (OnTensors, OnNumbers)]
    for t, loss in enumerate([2.5, 0.0, -1.0, math.nan, 1.0, math.inf, 1e-30, 1e30, 3.0]):
        for optimizer in pair:
            optimizer.param_groups[0]["lr"] = lr
            give(optimizer.param_groups[0]["params"], *random_like(fresh(), seed=t))
            if t == 4:
                optimizer.zero_grad(set_to_none=False)  # 0/0 or 1/0, which raise in Python
            optimizer.step(loss=loss)
        for one, other in zip(*(optimizer.last_step() for optimizer in pair), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=0, equal_nan=True)
        for one, other in zip(*(optimizer.param_groups[0]["params"] for optimizer in pair), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-30, equal_nan=True)
        memories = [optimizer.param_groups[0]["previous_step_size"] for optimizer in pair]
        torch.testing.assert_close(*memories, rtol=1e-6, atol=0)


def test_unknown_options_of_another_authors_method_are_refused():
    with pytest.raises(TypeError, match="Constant has no option 'weit': did you mean wait"):
        Constant(fresh(), weit=3)
    assert Loose(fresh(), wait=3).param_groups[0]["wait"] == 3
    with pytest.raises(ValueError, match="Loose has no option 'weit': did you mean wait"):
        Loose([{"params": fresh(), "weit": 3}])


def test_a_method_without_a_formula_says_so():
    class Empty(polyak.PolyakOptimizer):
        def __init__(self, params: Any) -> None:
            super().__init__(params, 1.0)

    optimizer = Empty(fresh())
    with pytest.raises(NotImplementedError, match=r"Empty must define step_size\(line, group\)"):
        optimizer.step(loss=1.0)
