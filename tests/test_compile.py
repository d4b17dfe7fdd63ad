"""torch.compile of a step: the same step, and no recompilation while loss, cap and gradients change."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from _pytest.mark import ParameterSet
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.optim.lr_scheduler import CosineAnnealingLR

import polyak
from catalogue import IN_ONE_GRAPH, Method, each_form_in_one_graph, each_in_one_graph
from observe import SMALL_BALLS, give, random_like, snapshot

pytestmark = pytest.mark.filterwarnings(SMALL_BALLS)

STEPS = 20


@contextmanager
def compiling() -> Iterator[None]:
    """Start from nothing, and ignore the warnings that torch raises inside Dynamo."""
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def pair(method: Method, form: str, lr: float, dtype: torch.dtype = torch.float32) -> list[polyak.PolyakOptimizer]:
    """Return two optimizers of the same start, whose cap is a tensor each."""
    found = []
    for _ in range(2):
        like = [torch.empty(shape, dtype=dtype) for shape in ((3, 2), ())]
        params = [nn.Parameter(value) for value in random_like(like, seed=7)]
        found.append(method.build(params, form, lr=torch.tensor(lr), constraint=polyak.L2Ball(5.0)))
    return found


def train(optimizer: polyak.PolyakOptimizer, wrap: Callable[[Any], Any], after: Callable[[], None]) -> None:
    """Make steps with another loss, other gradients and another cap each."""
    scheduler = CosineAnnealingLR(optimizer, STEPS)
    step = wrap(optimizer.step)  # the scheduler has wrapped it, too
    params = optimizer.param_groups[0]["params"]
    for t in range(STEPS):
        give(params, *random_like(params, seed=t))
        step(loss=torch.tensor(1.0 + 0.1 * t))
        scheduler.step()
        after()


def forms(*quick: str) -> list[ParameterSet]:
    """Return every form of every method; compiling takes seconds, so that all but a few are slow tests."""
    names = {f"{method.name}-{form}": (method, form) for method in IN_ONE_GRAPH for form in method.momenta}
    slow = pytest.mark.slow
    return [pytest.param(*row, id=name, marks=() if name in quick else slow) for name, row in names.items()]


def typed_forms(*quick: str) -> list[ParameterSet]:
    """Return every form in float64 and, if the method does not enlarge rounding, in float32."""
    wide = [pytest.param(*row.values, torch.float64, id=f"{row.id}-64", marks=row.marks) for row in forms(*quick)]
    narrow = [pytest.param(*row.values, torch.float32, id=str(row.id), marks=row.marks) for row in forms(*quick)]
    return [row for row in (*narrow, *wide) if row.values[0].rounds_alike or row.values[2] == torch.float64]


@pytest.mark.parametrize(("method", "form", "dtype"), typed_forms("ALIG-nesterov", "SlackSPS-none"))
def test_a_changing_loss_and_schedule_never_recompile(method, form, dtype):
    """Its parameters are a matrix and a number."""
    eager, compiled = pair(method, form, lr=0.2, dtype=dtype)
    counter = CompileCounterWithBackend("aot_eager")
    counts: list[int] = []
    train(eager, lambda step: step, lambda: None)
    with compiling():
        train(compiled, partial(torch.compile, backend=counter), lambda: counts.append(counter.frame_count))
    assert counts[-1] == counts[1], f"graphs after each step: {counts}"
    for name, value in snapshot(eager).items():
        torch.testing.assert_close(snapshot(compiled)[name], value, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("method", "form"), forms("ALIG-nesterov", "MoMoAdam-none"))
def test_a_step_is_one_graph_from_the_start(method, form):
    params = [nn.Parameter(value) for value in random_like([torch.empty(3, 2), torch.empty(4)], seed=7)]
    give(params, *random_like(params))
    groups = [{"params": params[:1]}, {"params": params[1:]}]
    optimizer = method.build(groups, form, constraint=polyak.L2Ball(5.0))
    counter = CompileCounterWithBackend("eager")
    with compiling():
        step = torch.compile(optimizer.step, backend=counter, fullgraph=True)
        step(loss=torch.tensor(1.0))
        step(loss=torch.tensor(2.0))  # Dynamo has put the key `capturable` into the groups, and compiles once more
        step(loss=torch.tensor(3.0))
    assert counter.frame_count <= 2


@pytest.mark.slow
@each_form_in_one_graph
def test_dynamo_explains_a_step_as_one_graph_without_breaks(method, form):
    params = [nn.Parameter(value) for value in random_like([torch.empty(3, 2), torch.empty(4)], seed=7)]
    give(params, *random_like(params))
    optimizer = method.build(params, form, constraint=polyak.L2Ball(5.0))
    with compiling():
        explained = torch._dynamo.explain(optimizer.step)(loss=torch.tensor(4.0))
    assert (explained.graph_count, explained.graph_break_count) == (1, 0)


@pytest.mark.slow
@each_in_one_graph
def test_inductor_makes_the_same_step(method):
    eager, compiled = pair(method, method.momenta[-1], lr=0.2)
    train(eager, lambda step: step, lambda: None)
    with compiling():
        train(compiled, torch.compile, lambda: None)
    for name, value in snapshot(eager).items():
        torch.testing.assert_close(snapshot(compiled)[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("accumulate", "scale"), [(1, None), (3, 512.0)])
def test_a_watched_loss_passes_through_compiled_autograd(accumulate, scale):
    """Right under accumulation and loss scaling, as without it."""

    def losses(engine: Callable[[], AbstractContextManager[object]]) -> list[float]:
        torch.manual_seed(0)
        model, x, y = nn.Linear(3, 1), torch.randn(8, 3), torch.randn(8, 1)
        optimizer = polyak.ALIG(model.parameters(), momentum=0.9)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale) if scale else None
        seen = []
        for step in range(4):
            optimizer.zero_grad()
            for i in range(accumulate):
                loss = optimizer.watch((i + 1.0) * (model(x) - y).square().mean(), scaler)
                with engine():
                    (scaler.scale(loss / accumulate) if scaler else loss / accumulate).backward()
            if step == 2:  # as after a batch that the loop leaves out
                continue
            if scaler:
                scaler.step(optimizer)
                scaler.update()
            else:
                optimizer.step()
            seen.append(float(optimizer.last_step().loss))
        return seen

    expected = losses(nullcontext)
    with compiling():
        found = losses(lambda: torch._dynamo.compiled_autograd._enable(torch.compile(backend="aot_eager")))
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.gpu
@each_form_in_one_graph
@pytest.mark.parametrize("fused", [None, True])
def test_a_whole_training_step_is_captured_in_a_cuda_graph_and_replayed(method, form, fused):
    """Forward, backward and step in one graph: nothing in the step waits for the device or depends on its data."""
    ends = [cuda_training(method, form, capture, fused) for capture in (False, True)]
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-5, atol=1e-6)


def cuda_training(method: Method, form: str, capture: bool, fused: bool | None) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1)).cuda()
    optimizer = method.build(model.parameters(), form, lr=0.1, constraint=polyak.L2Ball(5.0), fused=fused)
    x, y = torch.zeros(32, 8, device="cuda"), torch.zeros(32, 1, device="cuda")
    batches = torch.randn(STEPS, 32, 8, generator=torch.Generator().manual_seed(1)).cuda()

    def step() -> None:
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step(loss=loss)
        for p in model.parameters():
            p.grad.zero_()

    run = captured(step, model, optimizer) if capture else step
    for p in model.parameters():
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
    for batch in batches:
        x.copy_(batch)
        y.copy_(batch.sin().sum(1, keepdim=True))
        run()
    torch.cuda.synchronize()
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def captured(step: Callable[[], None], model: nn.Module, optimizer: polyak.PolyakOptimizer) -> Callable[[], None]:
    """Capture the step after a warm-up on a side stream, and put the model and its state back to the start."""
    start = {name: value.clone() for name, value in model.state_dict().items()}
    scalars = [{k: v.clone() for k, v in group.items() if isinstance(v, Tensor)} for group in optimizer.param_groups]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    model.load_state_dict(start)
    for group, first in zip(optimizer.param_groups, scalars, strict=True):
        for name in first.keys() - {"step_size"}:
            group[name].copy_(first[name])
    for state in optimizer.state.values():
        for buffer in state.values():
            buffer.zero_()
    return graph.replay
