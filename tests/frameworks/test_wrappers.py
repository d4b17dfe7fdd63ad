"""Optimizers around a Polyak optimizer, whose step() takes no loss=: the loss is that of the gradient."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import polyak
from truth import ROWS, STEPS, network, samples

pytestmark = [pytest.mark.frameworks, pytest.mark.filterwarnings("ignore")]
OPTIONS: dict[str, Any] = {"lr": 1.0, "lower_bound": -1.0, "constraint": polyak.L2Ball(2.0)}
RHO, AVERAGED = 0.05, 0.9


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    inputs, targets = samples(1).tensors
    yield from zip(inputs.split(ROWS), targets.split(ROWS), strict=True)


def train(model: nn.Module, step: Callable[[Tensor, Tensor], object]) -> list[Tensor]:
    for x, y in batches():
        step(x, y)
    return [p.detach() for p in model.parameters()]


def watched(
    model: nn.Module, inner: polyak.PolyakOptimizer, optimizer: Any, accumulate: int = 1
) -> Callable[[Tensor, Tensor], object]:
    """Return a step with gradient accumulation."""

    def step(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        for part, target in zip(x.chunk(accumulate), y.chunk(accumulate), strict=True):
            loss = inner.watch(F.cross_entropy(model(part), target))
            (loss / accumulate).backward()
        optimizer.step()

    return step


def with_closure(model: nn.Module, optimizer: Any, inner: polyak.PolyakOptimizer | None = None) -> Any:
    """Return a step that is given a closure, with or without a watched loss."""

    def closure_of(x: Tensor, y: Tensor) -> Callable[[], Tensor]:
        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            (inner.watch(loss) if inner else loss).backward()
            return loss

        return closure

    return closure_of


@pytest.mark.parametrize("how", ["closure", "watch", "watch, accumulated"])
def test_lookahead(how):
    from pytorch_optimizer import Lookahead

    model, twin = network(), network()
    inner, reference = (polyak.ALIG(each.parameters(), **OPTIONS) for each in (model, twin))
    optimizer = Lookahead(inner, k=2, alpha=0.5)
    if how == "closure":
        closure_of = with_closure(model, optimizer)
        found = train(model, lambda x, y: optimizer.step(closure_of(x, y)))
    else:
        found = train(model, watched(model, inner, optimizer, 1 + 3 * ("accumulated" in how)))
    slow, steps = copy.deepcopy([p.detach() for p in twin.parameters()]), 0

    def step(x: Tensor, y: Tensor) -> None:
        nonlocal steps
        reference.zero_grad()
        loss = F.cross_entropy(twin(x), y)
        loss.backward()
        reference.step(loss=loss)
        steps += 1
        if steps % 2 == 0:
            for p, kept in zip(twin.parameters(), slow, strict=True):
                p.data.lerp_(kept, 0.5)
                kept.copy_(p.data)

    torch.testing.assert_close(found, train(twin, step), rtol=1e-5, atol=1e-6)
    assert steps == STEPS


@pytest.mark.parametrize("accumulate", [1, 4])
def test_schedule_free_wrapper(accumulate):
    from pytorch_optimizer import ScheduleFreeWrapper

    model, twin = network(), network()
    inner, reference = (polyak.ALIG(each.parameters(), **OPTIONS) for each in (model, twin))
    optimizer = ScheduleFreeWrapper(inner, momentum=AVERAGED)
    optimizer.train()
    found = train(model, watched(model, inner, optimizer, accumulate))
    x_, z = ([p.detach().clone() for p in twin.parameters()] for _ in range(2))
    count = 0

    def step(x: Tensor, y: Tensor) -> None:
        """Take the gradient at y = 0.1·z + 0.9·x, move z by it, and x into the mean of all z."""
        nonlocal count
        reference.zero_grad()
        loss = F.cross_entropy(twin(x), y)
        loss.backward()
        for p, own in zip(twin.parameters(), z, strict=True):
            p.data.copy_(own)
        reference.step(loss=loss)
        count += 1
        for p, own, mean in zip(twin.parameters(), z, x_, strict=True):
            own.copy_(p.data)
            mean.lerp_(own, 1 / count)
            p.data.copy_(own.lerp(mean, AVERAGED))

    torch.testing.assert_close(found, train(twin, step), rtol=1e-4, atol=1e-5)
    optimizer.eval()
    torch.testing.assert_close([p.detach() for p in model.parameters()], x_, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how", ["step(closure)", "first_step, second_step"])
def test_sam_steps_with_the_loss_of_the_perturbed_weights(how):
    from pytorch_optimizer import SAM

    model, twin = network(), network()
    optimizer = SAM(model.parameters(), polyak.ALIG, rho=RHO, **OPTIONS)
    reference = polyak.ALIG(twin.parameters(), **OPTIONS)
    closure_of = with_closure(model, optimizer, optimizer.base_optimizer)

    def sam(x: Tensor, y: Tensor) -> None:
        closure = closure_of(x, y)
        closure()
        if how == "step(closure)":
            optimizer.step(closure)
        else:
            optimizer.first_step(zero_grad=True)
            closure()
            optimizer.second_step(zero_grad=True)

    def step(x: Tensor, y: Tensor) -> None:
        params = [*twin.parameters()]
        gradient = torch.autograd.grad(F.cross_entropy(twin(x), y), params)
        length = torch.cat([g.flatten() for g in gradient]).norm()
        before = [p.detach().clone() for p in params]
        for p, g in zip(params, gradient, strict=True):
            p.data.add_(g * RHO / length)
        reference.zero_grad()
        loss = F.cross_entropy(twin(x), y)
        loss.backward()
        for p, own in zip(params, before, strict=True):
            p.data.copy_(own)
        reference.step(loss=loss)

    torch.testing.assert_close(train(model, sam), train(twin, step), rtol=1e-4, atol=1e-5)


def test_pcgrad_steps_with_the_mean_of_the_losses():
    from pytorch_optimizer import PCGrad

    model, twin = network(), network()
    optimizer = PCGrad(polyak.ALIG(model.parameters(), **OPTIONS), reduction="mean")
    reference = polyak.ALIG(twin.parameters(), **OPTIONS)

    def losses(net: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
        return [F.cross_entropy(net(x), y), -0.2 * net(x)[:, 0].mean() + 1.0]

    def pcgrad(x: Tensor, y: Tensor) -> None:
        objectives = losses(model, x, y)
        optimizer.pc_backward(objectives)
        optimizer.step(lambda: torch.stack(objectives).mean())

    def step(x: Tensor, y: Tensor) -> None:
        params, objectives = [*twin.parameters()], losses(twin, x, y)
        options = {"retain_graph": True, "materialize_grads": True}
        grads = [torch.autograd.grad(each, params, **options) for each in objectives]
        flat = [torch.cat([g.flatten() for g in each]) for each in grads]
        product = torch.dot(*flat).clamp(max=0.0)
        changed = [a - product / b.square().sum() * b for a, b in (flat, flat[::-1])]
        for p, g in zip(params, (sum(changed) / 2).split([p.numel() for p in params]), strict=True):
            p.grad = g.view_as(p)
        reference.step(loss=torch.stack(objectives).mean())

    torch.testing.assert_close(train(model, pcgrad), train(twin, step), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("wrapper", ["Lookahead", "ScheduleFreeWrapper", "PCGrad"])
def test_without_a_loss_the_wrapper_s_step_says_what_to_write(wrapper):
    import pytorch_optimizer

    model = network()
    optimizer = getattr(pytorch_optimizer, wrapper)(polyak.ALIG(model.parameters(), **OPTIONS))
    if wrapper == "ScheduleFreeWrapper":
        optimizer.train()
    model(torch.ones(1, 6)).sum().backward()
    with pytest.raises(RuntimeError, match=r"ALIG\.step\(\) needs the loss: .*optimizer\.watch\(loss\)\.$"):
        optimizer.step()
