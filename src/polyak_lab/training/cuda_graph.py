"""The whole training step as one CUDA graph: recorded once, then replayed without waiting for Python.

A method that reads the loss never waits for the device, so that forward, backward, step size, move and projection are
one graph. The first steps of a run warm it up, and a smaller last batch is made as it comes: a run with the graph makes
the steps of one without.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from polyak_lab.optimizers import Observed
from polyak_lab.training import step
from polyak_lab.training.batches import Batch
from polyak_lab.training.session import Session
from polyak_lab.training.step import Step

T = TypeVar("T")

WARM_UP = 3  # steps; libraries choose their kernels and optimizers make their buffers in the first
COLUMNS = 2 + len(Observed._fields)


class Recorder:
    """Makes the steps of a run: full batches by a graph, once it is warm, and all others as they come."""

    def __init__(self) -> None:
        self._warm = 0
        self._tape: _Tape | None = None

    def __call__(self, this: Session, batch: Batch, weight: float) -> Step:
        """Make one step."""
        if len(batch[1]) < this.run.training.batch_size:
            return step.make(this, batch, weight)
        if self._warm < WARM_UP:
            self._warm += 1
            return _aside(batch[1].device, lambda: step.make(this, batch, weight))
        if self._tape is None:
            self._tape = _Tape(this, batch)
        return self._tape.play(batch)


class _Tape:
    """A step on tensors that stay where they are; what it saw goes to the next row of a log, on the device."""

    def __init__(self, this: Session, batch: Batch) -> None:
        self._this = this
        self._batch = batch[0].clone(), batch[1].clone()
        self._length, device = this.steps_per_epoch, batch[1].device
        self._log = torch.zeros(self._length, COLUMNS, dtype=torch.float64, device=device)
        self._rows = torch.arange(self._length, device=device)[:, None]
        self._row = torch.zeros((), dtype=torch.int64, device=device)
        self._played = 0
        self._replay = _recorded(device, self._make)

    def play(self, batch: Batch) -> Step:
        """Make the step on a batch; its numbers stay in the log for as many steps as an epoch has."""
        for place, value in zip(self._batch, batch, strict=True):
            place.copy_(value)
        self._replay()
        row = iter(self._log[self._played % self._length])
        self._played += 1
        self._this.optimizer.param_groups[0].update(self._step_size)
        values: list[Any] = [next(row) if isinstance(seen, Tensor) else seen for seen in self._seen]
        return Step(values[0], values[1], Observed(*values[2:]))

    def _make(self) -> None:
        loss, correct, observed = step.make(self._this, self._batch, 1.0)
        self._seen = (loss, correct, *observed)
        group = self._this.optimizer.param_groups[0]
        self._step_size = {key: group[key] for key in ("step_size",) if key in group}  # a step between replays moves it
        numbers = torch.stack([seen.double() for seen in self._seen if isinstance(seen, Tensor)])
        log = self._log[:, : len(numbers)]
        log.copy_(torch.where(self._rows == self._row, numbers, log))
        self._row.add_(1).remainder_(self._length)


def _aside(device: torch.device, call: Callable[[], T]) -> T:
    """Work on another stream, which is where a step must be warmed up."""
    if device.type != "cuda":
        return call()
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        done = call()
    torch.cuda.current_stream(device).wait_stream(stream)
    return done


def _recorded(device: torch.device, call: Callable[[], None]) -> Callable[[], None]:
    """Record what a call does, without doing it; on a CPU the call is its own record."""
    if device.type != "cuda":
        return call
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device), torch.cuda.graph(graph):
        call()
    return graph.replay
