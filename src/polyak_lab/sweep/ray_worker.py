"""What a Ray cluster runs of a sweep: the trials, on any node, and a mailbox beside the driver.

Every epoch of a trial is a question, whether to stop there, that waits in the mailbox for the driver's answer. So the
study stays in the driver's hands, and its database on the driver's disk; a node needs no Optuna.
"""

import asyncio
from dataclasses import dataclass
from typing import Any

import ray

from polyak_lab.errors import LabError
from polyak_lab.recipes.resolve import resolve
from polyak_lab.sweep.trial import Outcome, Trial, attempt_away


@dataclass(frozen=True)
class Epoch:
    """What a worker says after every epoch; epoch 0 says where the trial is."""

    number: int
    node: str
    epoch: int
    score: float


@dataclass(frozen=True)
class Arrival:
    """A trial that ended: what came out, or the sentence that says why nothing did."""

    node: str
    outcome: Outcome | None = None
    files: dict[str, bytes] | None = None
    refusal: str = ""


@ray.remote(num_cpus=0)
class Mailbox:
    """Questions of workers, which wait here for the answers of the driver."""

    def __init__(self) -> None:
        self.questions: asyncio.Queue[tuple[int, Epoch]] = asyncio.Queue()
        self.answers: dict[int, asyncio.Future[bool]] = {}
        self.asked = 0

    async def ask(self, epoch: Epoch) -> bool:
        """Leave a question and wait for its answer."""
        self.asked += 1
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.answers[self.asked] = answer
        await self.questions.put((self.asked, epoch))
        return await answer

    async def next(self) -> tuple[int, Epoch]:
        """Wait for the next question."""
        return await self.questions.get()

    async def answer(self, question: int, stop: bool) -> None:
        """Answer a question."""
        self.answers.pop(question).set_result(stop)


@ray.remote(max_retries=0)
def try_out(trial: Trial, mailbox: Any) -> Arrival:
    """Train a trial on this node."""
    node = ray.get_runtime_context().get_node_id()

    def behind(epoch: int, score: float) -> bool:
        return bool(ray.get(mailbox.ask.remote(Epoch(trial.number, node, epoch, score))))

    behind(0, 0.0)
    try:
        resolve(trial.run)  # whether this node has the device
        return Arrival(node, *attempt_away(trial, behind))
    except LabError as error:
        return Arrival(node, refusal=str(error))
