"""A watched loss belongs to the gradients that are there, however the loop made or cleared them."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import polyak
from catalogue import METHODS, each_method
from observe import refused

ROWS = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 3.0]])


def pair(method) -> tuple[nn.Linear, polyak.PolyakOptimizer]:
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    return model, method.build(model.parameters())


def objective(model: nn.Module, row: int = 0) -> Tensor:
    return (model(ROWS[row]) - 1.0).square().mean()


@each_method
def test_a_loss_whose_gradients_were_cleared_by_the_model_is_forgotten(method):
    """A GradScaler skips the step and the loop clears with model.zero_grad(), as the HF Trainer does."""
    model, optimizer = pair(method)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-100)  # overflows once
    for _ in range(2):
        loss = optimizer.watch(1e6 * objective(model), scaler)
        model.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    assert torch.equal(optimizer.last_step().loss, loss.detach())
    assert optimizer.last_step().skipped_steps == 0


@each_method
def test_only_the_accumulation_that_was_cleared_is_forgotten(method):
    model, optimizer = pair(method)
    for clear in (True, False):
        for row in range(3):
            (optimizer.watch(objective(model, row)) / 3).backward()
        if clear:
            model.zero_grad()
    mean = torch.stack([objective(model, row) for row in range(3)]).mean()
    torch.testing.assert_close(optimizer.step(), mean.detach(), rtol=1e-6, atol=0)


@each_method
def test_several_losses_may_be_watched_in_one_backward(method):
    model, optimizer = pair(method)
    for _ in range(2):  # the second time over a value that was cleared
        model.zero_grad()
        total = sum(0.5 * optimizer.watch(objective(model, row)) for row in range(2))
        total.backward()
    torch.testing.assert_close(optimizer.step(), total.detach(), rtol=1e-6, atol=0)


@each_method
def test_gradients_that_come_late_keep_what_was_watched_before(method):
    """FSDP2 without synchronisation leaves p.grad empty until the last micro-batch."""
    model, optimizer = pair(method)
    inner = nn.Linear(2, 1)
    inner.load_state_dict(model.state_dict())
    losses = [objective(inner, row) for row in range(3)]
    for loss in losses:
        (optimizer.watch(loss) / 3).backward()
    for p, q in zip(model.parameters(), inner.parameters(), strict=True):
        p.grad = q.grad
    torch.testing.assert_close(optimizer.step(), torch.stack(losses).mean().detach(), rtol=1e-6, atol=0)


@each_method
def test_a_loop_may_divide_the_watched_loss_in_place(method):
    model, optimizer = pair(method)
    loss = optimizer.watch(objective(model))
    whole = loss.detach().clone()
    loss /= 4
    loss.backward()
    torch.testing.assert_close(optimizer.step(), whole / 4, rtol=1e-6, atol=0)


@each_method
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_narrow_loss_is_multiplied_in_float32(method, dtype):
    w = nn.Parameter(torch.tensor(1.7, dtype=dtype))
    optimizer = method.build([w])
    loss = optimizer.watch(w * 1.0)
    (loss * 1.1).backward()
    whole, share = loss.detach().double(), torch.tensor(1.1, dtype=dtype).double()
    assert math.isclose(float(optimizer.step()), float(share * whole), rel_tol=1e-6)


@each_method
def test_a_scaler_without_the_loss_is_named_with_the_line_to_write(method):
    model, optimizer = pair(method)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(objective(model)).backward()
    own = {"SAMSPS": r"optimizer\.step\(closure\)", "ALIGPlus": r"loss=losses, indices=indices"}
    line = own.get(method.name, r"the GradScaler .* scaler\.step\(optimizer, loss=loss\)")
    with pytest.raises(RuntimeError, match=f"needs the loss: .*{line}"):
        scaler.step(optimizer)


class Fails(torch.autograd.Function):
    """A function whose backward is out of memory while `fails` is set."""

    fails = True

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        if Fails.fails:
            raise RuntimeError("out of memory")
        return grad


@each_method
@pytest.mark.parametrize("clear", ["optimizer", "model", "nothing"])
@pytest.mark.parametrize("before", [0, 1])
def test_a_backward_that_raises_leaves_no_loss_behind(method, clear, before, monkeypatch):
    """The HF Trainer with auto_find_batch_size catches it and begins again with a smaller batch."""
    model, optimizer = pair(method)
    for row in range(before):
        optimizer.watch(objective(model, row)).backward()
    with pytest.raises(RuntimeError, match="out of memory"):
        optimizer.watch((Fails.apply(model(ROWS)) - 1.0).square().mean()).backward()
    if clear != "nothing":
        (optimizer if clear == "optimizer" else model).zero_grad()
    monkeypatch.setattr(Fails, "fails", False)
    loss = optimizer.watch((Fails.apply(model(ROWS[2])) - 1.0).square().mean())
    loss.backward()
    kept = objective(model).detach() if before and clear == "nothing" else 0.0
    torch.testing.assert_close(optimizer.step(), loss.detach() + kept, rtol=1e-6, atol=0)


@each_method
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpoints_change_no_loss(method, use_reentrant):
    (first, a), (second, b) = pair(method), pair(method)
    x = ROWS[:2].clone().requires_grad_()
    losses = [(checkpoint(first, x, use_reentrant=use_reentrant) - 1.0).square().mean(), 3 * objective(second, 2)]
    for loss in losses:
        for optimizer in (a, b):
            optimizer.watch(loss)
        loss.backward()
    for optimizer, loss in zip((a, b), losses, strict=True):
        torch.testing.assert_close(optimizer.step(), loss.detach(), rtol=1e-6, atol=0)


MULTIPLES: dict[str, Callable[[Tensor], Tensor]] = {
    "same": lambda loss: loss,
    "divided": lambda loss: loss / 4,
    "divided in place": lambda loss: loss.div_(4),
    "copied": lambda loss: loss.clone() * torch.tensor(2.0) / 8,
    "in another type": lambda loss: loss.double() / 4,
}


@each_method
@pytest.mark.parametrize("multiple", MULTIPLES)
@pytest.mark.parametrize("scaled", [(), (0,), (1,), (0, 1)], ids=str)
def test_a_loss_that_is_watched_twice_counts_once(method, multiple, scaled):
    """In the training step and by a callback, which sees it divided and scaled; either may know the scaler."""
    model, optimizer = pair(method)
    scaler = torch.amp.GradScaler("cpu", init_scale=512.0)
    given = [scaler if i in scaled else None for i in range(2)]
    loss = optimizer.watch(objective(model), given[0])
    whole = loss.detach().clone()
    loss = MULTIPLES[multiple](loss)
    if scaled:
        loss = scaler.scale(loss)
    optimizer.watch(optimizer.watch(loss, given[1]))
    loss.backward()
    torch.testing.assert_close(optimizer.step(), whole / (1 if multiple == "same" else 4), rtol=1e-6, atol=0)


@each_method
def test_losses_that_one_node_returns_are_watched_each(method):
    model, optimizer = pair(method)
    losses = (model(ROWS) - 1.0).square().reshape(-1).unbind()
    for loss in losses:
        optimizer.watch(loss)
    torch.stack(losses).mean().backward()
    torch.testing.assert_close(optimizer.step(), torch.stack(losses).mean().detach(), rtol=1e-6, atol=0)


# Passes that do not reach the parameters


def penalised(model: nn.Module, loss: Tensor, x: Tensor) -> Tensor:
    (slope,) = torch.autograd.grad(loss, x, create_graph=True)
    return loss + 0.1 * slope.square().sum()


def value_of(model: nn.Module, x: Tensor) -> Tensor:
    return (model(x) - 1.0).square().mean()


EXTRA: dict[str, Callable[[nn.Module, Tensor, Tensor], None]] = {
    "autograd.grad of the input": lambda model, loss, x: penalised(model, loss, x).backward(),
    "autograd.grad of the weights": lambda model, loss, x: (
        loss
        + 0.1 * sum(g.square().sum() for g in torch.autograd.grad(loss, list(model.parameters()), create_graph=True))
    ).backward(),
    "autograd.grad that keeps the graph": lambda model, loss, x: (
        torch.autograd.grad(loss, x, retain_graph=True),
        loss.backward(),
    ),
    "autograd.grad after backward": lambda model, loss, x: (
        loss.backward(retain_graph=True),
        torch.autograd.grad(loss, x),
    ),
    "backward of the input alone": lambda model, loss, x: (
        loss.backward(inputs=[x], retain_graph=True),
        loss.backward(),
    ),
    "backward of one weight alone": lambda model, loss, x: loss.backward(inputs=[model.weight]),
    "backward that makes a graph": lambda model, loss, x: loss.backward(create_graph=True),
    "several of each": lambda model, loss, x: (
        [torch.autograd.grad(loss, x, create_graph=True) for _ in range(3)],
        loss.backward(inputs=[x], retain_graph=True),
        loss.backward(retain_graph=True),
        torch.autograd.grad(loss, list(model.parameters())),
    ),
}


@each_method
@pytest.mark.filterwarnings("ignore:Using backward")  # torch's own, about create_graph
@pytest.mark.parametrize("extra", EXTRA.values(), ids=EXTRA.keys())
def test_a_pass_that_gives_the_parameters_no_gradient_does_not_count(method, extra):
    model, optimizer = pair(method)
    x = ROWS[:1].clone().requires_grad_()
    for _ in range(3):
        optimizer.zero_grad()
        loss = optimizer.watch(value_of(model, x))
        extra(model, loss, x)
        torch.testing.assert_close(optimizer.step(), loss.detach(), rtol=1e-6, atol=0)
        for p in model.parameters():
            p.grad = p.grad.detach() if p.grad is not None else None


@each_method
def test_two_passes_that_both_accumulate_count_twice(method):
    model, optimizer = pair(method)
    loss = optimizer.watch(objective(model))
    loss.backward(retain_graph=True)
    loss.backward()
    torch.testing.assert_close(optimizer.step(), 2 * loss.detach(), rtol=1e-6, atol=0)


@each_method
def test_gradients_that_a_loop_takes_from_autograd_and_sets_itself_count(method):
    """Loops that combine the gradients of several tasks do so."""
    model, optimizer = pair(method)
    params, losses = list(model.parameters()), []
    for _ in range(2):
        optimizer.zero_grad()
        losses = [optimizer.watch(objective(model, row)) for row in range(2)]
        grads = [torch.autograd.grad(loss / 2, params) for loss in losses]
        for p, *parts in zip(params, *grads, strict=True):
            p.grad = sum(parts)
        torch.testing.assert_close(optimizer.step(), sum(losses).detach() / 2, rtol=1e-6, atol=0)


# Several optimizers


@each_method
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("order", ["each", "all"])
@pytest.mark.parametrize("clear", ["optimizer", "model", "to zero"])
def test_each_of_several_optimizers_sees_what_reaches_its_parameters(method, count, order, clear):
    """A callback watches every loss for every optimizer, as it cannot know whose it is."""
    pairs = [pair(method) for _ in range(count)]
    for step in range(3):
        losses = []
        for model, optimizer in pairs:
            if clear == "optimizer":
                optimizer.zero_grad()
            else:
                model.zero_grad(set_to_none=clear == "model")
        for i, (model, optimizer) in enumerate(pairs):
            loss = (i + 1.0) * objective(model, step)
            for _, other in pairs:
                other.watch(loss)
            loss.backward()
            losses.append(loss.detach())
            if order == "each":
                torch.testing.assert_close(optimizer.step(), loss.detach(), rtol=1e-6, atol=0)
        for loss, (_, optimizer) in zip(losses if order == "all" else (), pairs, strict=False):
            torch.testing.assert_close(optimizer.step(), loss, rtol=1e-6, atol=0)


@each_method
def test_losses_that_share_parameters_count_for_all_they_reach(method):
    (first, a), (second, b) = pair(method), pair(method)
    mine = objective(first)
    both = (first(ROWS[1]) + second(ROWS[1])).square().mean()
    for loss in (mine, both):
        for optimizer in (a, b):
            optimizer.watch(loss)
        loss.backward()
    torch.testing.assert_close(a.step(), (mine + both).detach(), rtol=1e-6, atol=0)
    torch.testing.assert_close(b.step(), both.detach(), rtol=1e-6, atol=0)


# Inside backward


@each_method
@pytest.mark.parametrize("door", ["none", "watch", "loss"])
@pytest.mark.parametrize("optimizers", ["one each", "one for all"])
def test_a_step_inside_backward_is_refused_with_the_reason(method, door, optimizers):
    model, whole = pair(method)
    of = {p: method.build([p]) if optimizers == "one each" else whole for p in model.parameters()}
    given = {"loss": 1.0} if door == "loss" else {}
    for p in of:
        p.register_post_accumulate_grad_hook(lambda p: (of[p].step(**given), None)[1])
    before = [p.detach().clone() for p in of]
    loss = objective(model)
    for optimizer in set(of.values()) if door == "watch" else ():
        loss = optimizer.watch(loss)
    with refused(
        RuntimeError, f"{method.name}.step() cannot run inside backward", "norm of the whole gradient", "after"
    ):
        loss.backward()
    assert all(torch.equal(p, old) for p, old in zip(of, before, strict=True))


@pytest.mark.parametrize("method", [m for m in METHODS if m.cls.takes_norm], ids=lambda method: method.name)
def test_a_step_inside_backward_that_is_given_the_whole_norm_is_made(method):
    model, optimizer = pair(method)
    model.bias.requires_grad_(False)
    model.weight.register_post_accumulate_grad_hook(lambda p: (optimizer.step(loss=1.0, grad_sq_norm=4.0), None)[1])
    objective(model).backward()
    assert float(optimizer.last_step().grad_sq_norm) == 4.0


@pytest.mark.parametrize("method", [m for m in METHODS if m.cls.takes_norm], ids=lambda method: method.name)
def test_a_step_inside_backward_takes_what_was_watched_so_far(method):
    model, optimizer = pair(method)
    model.bias.requires_grad_(False)
    model.weight.register_post_accumulate_grad_hook(lambda p: (optimizer.step(grad_sq_norm=4.0), None)[1])
    for row in range(2):
        loss = optimizer.watch(objective(model, row))
        loss.backward()
        assert optimizer.last_step().loss == loss
        optimizer.zero_grad()
