"""Whatever losses and gradients come: no NaN in a parameter, no poisoned memory, and a skip only for a reason."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import polyak
from catalogue import BACKENDS, CLASSIC, METHODS, Method
from observe import SMALL_BALLS, give, moved, random_like, snapshot

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64)
FORMS = [(method, form) for method in METHODS for form in method.momenta]

losses = (
    st.sampled_from([0.0, 1e-40, 1e-30, 1e-8, 1.0, 1e8, 1e30, 3e38, 1e300, -1.0, -1e30, math.nan, math.inf, -math.inf])
    | st.floats(1e-6, 1e6)
    | st.floats(width=32)
)
shapes = st.sampled_from([(), (1,), (3,), (2, 2), (0,)])
# What a gradient is made of: nothing, a factor on random numbers, or one entry that is not finite.
contents = st.sampled_from([None, 0.0, math.nan, math.inf, -math.inf]) | st.floats(-4, 4).map(lambda e: 10.0**e)

pytestmark = [  # histories hold such steps
    pytest.mark.filterwarnings("ignore:.*(moves nothing|nothing has moved|the loss has stayed above)"),
    pytest.mark.filterwarnings(SMALL_BALLS),
]


@dataclass(frozen=True)
class Call:
    """One step: its loss, and what the gradient of each parameter is made of."""

    loss: float
    gradients: tuple[float | None, ...]
    seed: int


@dataclass(frozen=True)
class History:
    """An optimizer and the steps it makes."""

    method: Method
    form: str
    options: dict[str, Any]
    groups: tuple[tuple[tuple[tuple[int, ...], torch.dtype], ...], ...]
    calls: tuple[Call, ...]

    def build(self) -> polyak.PolyakOptimizer:
        cells = [[nn.Parameter(torch.ones(shape, dtype=dtype)) for shape, dtype in group] for group in self.groups]
        return self.method.build([{"params": cell} for cell in cells], self.form, **self.options)


@st.composite
def histories(draw: st.DrawFn) -> History:
    method, form = draw(st.sampled_from(FORMS))
    one = st.tuples(shapes, st.sampled_from(DTYPES))
    groups = draw(st.lists(st.lists(one, min_size=1, max_size=3).map(tuple), min_size=1, max_size=2))
    count = sum(map(len, groups))
    call = st.builds(Call, losses, st.tuples(*[contents] * count), st.integers(0, 99))
    options = {
        **draw(st.sampled_from(list(BACKENDS.values()))),
        "lr": draw(st.sampled_from([1e-3, 0.1, 10.0, method.largest_lr])),
        "constraint": draw(st.sampled_from([None, polyak.L2Ball(1.0)])),
    }
    return History(method, form, options, tuple(groups), tuple(draw(st.lists(call, min_size=1, max_size=6))))


def gradients(params: list[nn.Parameter], call: Call) -> list[Tensor | None]:
    found: list[Tensor | None] = []
    for content, noise in zip(call.gradients, random_like(params, seed=call.seed), strict=True):
        if content is None or math.isfinite(content):
            found.append(None if content is None else noise * content)
        else:
            found.append(noise.masked_fill(torch.arange(noise.numel()).reshape(noise.shape) == 0, content))
    return found


def largest(params: list[nn.Parameter]) -> float:
    """Return the largest squared length of a step; float16 refuses single numbers instead."""
    return min(torch.finfo(torch.promote_types(p.dtype, torch.bfloat16)).max for p in params if p.grad is not None)


def overflows(group: dict, index: int, before: dict[str, Tensor], gamma: float) -> bool:
    """Return whether a step from a snapshot can reach what float16 cannot hold, in a parameter or its buffer."""
    mu, adjusted = group["momentum"], group.get("adjusted_momentum")
    for j, p in enumerate(group["params"]):
        if p.grad is None or p.dtype != torch.float16:
            continue
        x, u = before[f"parameter {index}.{j}"].double().abs(), p.grad.double().abs()
        v = mu * before.get(f"momentum_buffer {index}.{j}", torch.zeros(())).double().abs()
        v = v + (u if adjusted else gamma * u) if mu else v
        x = x + gamma * u + (gamma * mu if adjusted else mu) * v
        if torch.cat([x.reshape(-1), v.reshape(-1)]).max() > 0.999 * torch.finfo(torch.float16).max:
            return True
    return False


def held(optimizer: polyak.PolyakOptimizer, params: list[nn.Parameter]) -> float:
    """Return ‖v‖² of a buffer that holds gradients: today's γ multiplies the old ones, too."""
    return sum(float(optimizer.state[p]["momentum_buffer"].to(torch.cdouble).abs().square().sum()) for p in params)


# inf or -inf until they are set
UNSET = ("learned_lower_bound", "previous", "previous_step_size", "last_losses", "best_losses")


def check_scalars(optimizer: polyak.PolyakOptimizer) -> None:
    for name, value in snapshot(optimizer).items():
        unset = value.isinf() if name.split()[0] in UNSET else torch.tensor(False)
        assert (value.isfinite() | unset).all(), name
    for group in optimizer.param_groups:
        assert group["step_size"] >= 0
        assert group.get("previous_step_size", 1.0) > 0


def check_skip(optimizer: polyak.PolyakOptimizer, index: int, finite: bool, before: dict[str, Tensor]) -> None:
    """A finite step is only skipped if moving by γ = min(ratio, cap) would be too far for the type; the cap is ≤ lr."""
    last, group = optimizer.last_step(index), optimizer.param_groups[index]
    having = [p for p in group["params"] if p.grad is not None]
    event(f"finite: {finite}, skipped: {bool(last.skipped)}")
    assert finite or not having or last.skipped
    if last.skipped and finite and isinstance(optimizer, tuple(method.cls for method in CLASSIC)):
        longest = min(float(last.ratio), group["lr"]) / (1 - group["momentum"])
        length = float(last.grad_sq_norm) + (held(optimizer, having) if group.get("adjusted_momentum") else 0.0)
        too_far = longest * longest * length > largest(having) or length > largest(having) * largest(having) / 4
        assert not math.isfinite(longest) or too_far or overflows(group, index, before, longest)
    assert not last.skipped or float(last.step_size) == 0.0


@settings(max_examples=400)
@given(history=histories())
def test_no_history_poisons_anything(history):
    optimizer = history.build()
    params = [p for group in optimizer.param_groups for p in group["params"]]
    scalar = optimizer.param_groups[0]["step_size"].dtype
    for call in history.calls:
        grads = gradients(params, call)
        give(params, *grads)
        before = snapshot(optimizer)
        optimizer.step(loss=call.loss)
        check_scalars(optimizer)
        norm = sum(float(grad.to(torch.cdouble).abs().square().sum()) for grad in grads if grad is not None)
        finite = math.isfinite(float(torch.tensor(call.loss, dtype=scalar))) and math.isfinite(norm)
        for i in range(len(optimizer.param_groups)):
            check_skip(optimizer, i, finite, before)
        assert finite or {name for name in moved(before, snapshot(optimizer)) if name in before} == set()


@settings(max_examples=100)
@given(history=histories(), scale=st.floats(0.5, 2.0))
def test_a_ball_holds_after_every_step(history, scale):
    radius = scale
    options = {**history.options, "constraint": polyak.L2Ball(radius)}
    optimizer = History(history.method, history.form, options, history.groups, history.calls).build()
    params = [p for group in optimizer.param_groups for p in group["params"]]
    coarse = max(torch.finfo(p.dtype).eps for p in params)
    for call in history.calls:
        give(params, *gradients(params, call))
        optimizer.step(loss=call.loss)
        norm = math.sqrt(sum(float(p.detach().to(torch.cdouble).abs().square().sum()) for p in params))
        assert norm <= radius * (1 + coarse) + 1e-6


@settings(max_examples=60)
@given(history=histories())
def test_equal_histories_end_in_equal_bits(history):
    ends = []
    for _ in range(2):
        optimizer = history.build()
        params = [p for group in optimizer.param_groups for p in group["params"]]
        for call in history.calls:
            give(params, *gradients(params, call))
            optimizer.step(loss=call.loss)
        ends.append(snapshot(optimizer))
    assert moved(*ends) == set()
