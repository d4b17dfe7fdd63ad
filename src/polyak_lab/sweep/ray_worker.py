"""The tasks of a sweep on a Ray cluster: the trials, on any node, and a mailbox on the node of the driver.

After every epoch a trial sends a report to the mailbox, and waits for the driver's answer whether
to prune it. So only the driver needs the study, its database and Optuna.
"""

import asyncio
from dataclasses import dataclass
from typing import Any

import ray

from polyak_lab.errors import LabError
from polyak_lab.recipes.resolve import resolve
from polyak_lab.sweep.trial import Outcome, Trial, run_remotely


@dataclass(frozen=True)
class Report:
    """The report of a worker after an epoch; that of epoch 0 names the node of the trial."""

    number: int
    node: str
    epoch: int
    score: float


@dataclass(frozen=True)
class TaskResult:
    """The result of a trial: its outcome and files, or the message of its error."""

    node: str
    outcome: Outcome | None = None
    files: dict[str, bytes] | None = None
    error_text: str = ""


@ray.remote(num_cpus=0)
class Mailbox:
    """The reports of the workers, and the answers of the driver."""

    def __init__(self) -> None:
        self.reports: asyncio.Queue[tuple[int, Report]] = asyncio.Queue()
        self.answers: dict[int, asyncio.Future[bool]] = {}
        self.count = 0

    async def send(self, report: Report) -> bool:
        """Send a report and wait for its answer."""
        self.count += 1
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.answers[self.count] = answer
        await self.reports.put((self.count, report))
        return await answer

    async def next(self) -> tuple[int, Report]:
        """Wait for the next report."""
        return await self.reports.get()

    async def answer(self, number: int, prune: bool) -> None:
        """Answer a report."""
        self.answers.pop(number).set_result(prune)


@ray.remote(max_retries=0)
def run_task(trial: Trial, mailbox: Any) -> TaskResult:
    """Train a trial on this node."""
    node = ray.get_runtime_context().get_node_id()

    def should_prune(epoch: int, score: float) -> bool:
        return bool(ray.get(mailbox.send.remote(Report(trial.number, node, epoch, score))))

    should_prune(0, 0.0)
    try:
        resolve(trial.run)  # raises if this node does not have the device
        return TaskResult(node, *run_remotely(trial, should_prune))
    except LabError as error:
        return TaskResult(node, error_text=str(error))
