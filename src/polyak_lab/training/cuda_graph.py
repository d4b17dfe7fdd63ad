"""The whole training step as one CUDA graph, captured once and replayed without the overhead of Python.

Methods that read the loss never synchronise with the host, so that forward, backward, step size,
update and projection fit in one graph. The first steps of a run warm up, and a smaller last batch
is trained without the graph: the steps of a run are the same with and without it.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from polyak_lab.config.run import Training
from polyak_lab.optimizers import StepInfo
from polyak_lab.processes import group
from polyak_lab.training.batches import Batch
from polyak_lab.training.session import Session
from polyak_lab.training.step import StepResult, train_step

T = TypeVar("T")

WARM_UP = 3  # steps, in which libraries choose kernels and the optimizer allocates its state
COLUMNS = 2 + len(StepInfo._fields)


def is_replayed(training: Training) -> bool:
    """Return whether a graph makes the steps of a run, for which there must be one process."""
    return training.cuda_graph and group.world_size() == 1


class GraphedStep:
    """Trains on full batches by replaying a graph after the warm-up, and on all others directly."""

    def __init__(self) -> None:
        self._warm_ups = 0
        self._captured: _CapturedStep | None = None

    def __call__(self, session: Session, batch: Batch, weight: float) -> StepResult:
        """Train on a batch."""
        if len(batch[1]) < session.run.training.batch_size:
            return train_step(replace(session, replica=session.network), batch, weight)
        if self._warm_ups < WARM_UP:
            self._warm_ups += 1
            return _on_side_stream(batch[1].device, lambda: train_step(session, batch, weight))
        if self._captured is None:
            self._captured = _CapturedStep(session, batch)
        return self._captured.replay(batch)


class _CapturedStep:
    """A step on static tensors, whose results go to the next row of a log on the device."""

    def __init__(self, session: Session, batch: Batch) -> None:
        self._session = session
        self._batch = batch[0].clone(), batch[1].clone()
        self._length, device = session.steps_per_epoch, batch[1].device
        self._log = torch.zeros(self._length, COLUMNS, dtype=torch.float64, device=device)
        self._rows = torch.arange(self._length, device=device)[:, None]
        self._row = torch.zeros((), dtype=torch.int64, device=device)
        self._replays = 0
        self._replay = _capture(device, self._step)

    def replay(self, batch: Batch) -> StepResult:
        """Train on a batch; the log keeps its results for as many steps as an epoch has."""
        for static, value in zip(self._batch, batch, strict=True):
            static.copy_(value)
        self._replay()
        row = iter(self._log[self._replays % self._length])
        self._replays += 1
        self._session.optimizer.param_groups[0].update(self._step_size)
        values: list[Any] = [next(row) if isinstance(x, Tensor) else x for x in self._results]
        return StepResult(values[0], values[1], StepInfo(*values[2:]))

    def _step(self) -> None:
        loss, correct, info = train_step(self._session, self._batch, 1.0)
        self._results = (loss, correct, *info)
        param_group = self._session.optimizer.param_groups[0]
        # A step without the graph rebinds this key to another tensor.
        self._step_size = {key: param_group[key] for key in ("step_size",) if key in param_group}
        numbers = torch.stack([x.double() for x in self._results if isinstance(x, Tensor)])
        log = self._log[:, : len(numbers)]
        log.copy_(torch.where(self._rows == self._row, numbers, log))
        self._row.add_(1).remainder_(self._length)


def _on_side_stream(device: torch.device, call: Callable[[], T]) -> T:
    """Call a function on a side stream, as CUDA graphs require for the warm-up."""
    if device.type != "cuda":
        return call()
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        result = call()
    torch.cuda.current_stream(device).wait_stream(stream)
    return result


def _capture(device: torch.device, call: Callable[[], None]) -> Callable[[], None]:
    """Capture a function in a graph and return its replay; on a CPU, return the function itself."""
    if device.type != "cuda":
        return call
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device), torch.cuda.graph(graph):
        call()
    return graph.replay
