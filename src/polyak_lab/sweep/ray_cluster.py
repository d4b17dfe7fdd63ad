"""The trials of a sweep as tasks of a Ray cluster.

One process, on a machine of the cluster, holds the study; it asks for a trial whenever a node has room and tells what
came out. A trial whose node or worker went away is submitted again with the same values: Ray's own retries do the
same, but say nothing and know no end when it is the trial that kills its worker. What runs on the nodes is in
`sweep_worker`.
"""

import logging
import os
import re
import signal
import socket
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from polyak_lab.config.run import Run
from polyak_lab.console import say
from polyak_lab.errors import LabError
from polyak_lab.files import explain_os_errors
from polyak_lab.recipes.recipe import on_device
from polyak_lab.recipes.resolve import resolve
from polyak_lab.sweep.trial import Outcome, Trial, bring_home, outcome

if TYPE_CHECKING:
    from polyak_lab.sweep.search import Search

os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")  # else minutes pass before Ray gives an address up
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")  # Ray's page about every loss, beside the line said here

try:
    import ray
    from ray.exceptions import NodeDiedError, OutOfMemoryError, RayError, RayTaskError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError as error:
    raise LabError("polyak sweep --ray needs Ray: install it with pip install 'polyak[ray]'.") from error
else:
    from polyak_lab.sweep.ray_worker import Mailbox, try_out

ENVIRONMENT = {"env_vars": {"OMP_WAIT_POLICY": "PASSIVE"}}  # as on the command line: threads that wait sleep
LOST = "the node was lost"
LOSSES = {NodeDiedError: LOST, OutOfMemoryError: "the node was short of memory"}
CRASHES = 5  # of one trial's worker, its node being well; more are the trial's own doing
LOOK = 5.0  # seconds between two looks at which nodes there are


@contextmanager
def cluster(address: str) -> Iterator["Cluster"]:
    """Join a cluster, and leave it with every trial of this sweep stopped."""
    _check_answers(address)
    _join(address)
    try:
        yield Cluster(address)
    except RayError as error:
        raise LabError(f"The Ray cluster at {address} stopped this sweep ({_reason(error)}).") from error
    finally:
        ray.shutdown()


def _join(address: str) -> None:
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, runtime_env=ENVIRONMENT)
    except (RayError, ConnectionError, RuntimeError, ValueError) as error:
        raise LabError(f"The Ray cluster at {address} cannot be joined ({_reason(error)}).") from error
    finally:
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray's own exits without a word


class Cluster:
    """The nodes of a Ray cluster as workers of a sweep."""

    def __init__(self, address: str) -> None:
        self.address = address

    def resolve(self, run: Run) -> Run:
        """Spell a run out for the nodes; this machine need not have their device."""
        return on_device(resolve(on_device(run, "cpu")), _device(run))

    def work(self, search: "Search", left: int) -> None:
        """Keep the nodes busy until so many more trials count."""
        base = search.base
        needs = {"GPU": 1} if _device(base) == "cuda" else {"CPU": base.training.threads or 1}
        if not _room(needs):
            raise LabError(f"No node of the Ray cluster at {self.address} has {_spelt(needs)}, which a trial needs.")
        _Shift(search, left, needs).work()


class _Shift:
    """The trials that are on nodes, those that wait, and how many are left to do."""

    def __init__(self, search: "Search", left: int, needs: Mapping[str, int]) -> None:
        self.search = search
        self.left = left
        self.needs = needs
        self.task = try_out.options(num_cpus=needs.get("CPU", 0), num_gpus=needs.get("GPU", 0))
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        mailbox: Any = Mailbox  # which ray.remote has made an actor class
        self.mailbox = mailbox.options(scheduling_strategy=here).remote()
        self.question = self.mailbox.next.remote()
        self.flying: dict[ray.ObjectRef, Trial] = {}
        self.waiting: list[Trial] = []
        self.nodes: dict[int, str] = {}
        self.crashes: Counter[int] = Counter()

    def work(self) -> None:
        """Submit where there is room, then deal with what comes first."""
        stranded = False
        while self.left:
            self._abandon()
            self._submit()
            if not self.flying and self.left and not stranded:
                say(self.search.console, f"No node with {_spelt(self.needs)} is left: waiting for one.")
            stranded = not self.flying
            ready, _ = ray.wait([self.question, *self.flying], timeout=LOOK)
            for reference in ready:
                self._land(reference) if reference in self.flying else self._answer()

    def _abandon(self) -> None:
        """Give up the trials of lost nodes: one that hangs keeps its connections, and Ray waits for minutes."""
        gone = _gone()
        for reference, trial in [*self.flying.items()]:
            if self.nodes.get(trial.number) in gone:
                del self.flying[reference]
                self._wait_again(trial, LOST)

    def _submit(self) -> None:
        """Fill the nodes, but no more: a task that Ray holds back would start when another waits for an answer."""
        room = _room(self.needs)
        while len(self.flying) < room and (trial := self._next()) is not None:
            place = trial.at(trial.folder)
            if place.finished:
                self._count(trial, outcome(place), ", done before")
                continue
            with explain_os_errors("make the run folder", trial.folder):
                trial.folder.mkdir(parents=True, exist_ok=True)
            self.flying[self.task.remote(trial, self.mailbox)] = trial

    def _next(self) -> Trial | None:
        """Take a trial whose folder nobody works in: one that waits, else a new one."""
        busy = {trial.folder for trial in self.flying.values()}
        while len(self.waiting) + len(self.flying) < self.left and all(trial.folder in busy for trial in self.waiting):
            self.waiting.append(self.search.ask())
        free = next((trial for trial in self.waiting if trial.folder not in busy), None)
        if free is not None:
            self.waiting.remove(free)
        return free

    def _answer(self) -> None:
        """Answer the oldest question; who asks from a node given up shall stop."""
        number, epoch = ray.get(self.question)
        self.question = self.mailbox.next.remote()
        stop = epoch.node in _gone()
        if not stop:
            self.nodes[epoch.number] = epoch.node
            stop = self.search.behind(epoch.number, epoch.epoch, epoch.score)
        self.mailbox.answer.remote(number, stop)

    def _land(self, reference: ray.ObjectRef) -> None:
        trial = self.flying.pop(reference)
        try:
            arrival = ray.get(reference)
        except RayTaskError as error:
            self._fail(trial, f"{_reason(error.cause)}.")
        except RayError as error:
            self._lose(trial, error)
        else:
            if arrival.refusal:
                self._fail(trial, arrival.refusal)
            bring_home(trial, arrival.files)
            self._count(trial, arrival.outcome, self._where(trial))

    def _count(self, trial: Trial, found: Outcome, where: str) -> None:
        self.search.tell(trial, found, where)
        self.left -= 1

    def _lose(self, trial: Trial, error: RayError) -> None:
        """Submit a trial again, unless it seems to be the one that kills its workers."""
        what = LOSSES.get(type(error), "its worker died")
        self.crashes[trial.number] += what != LOST
        if self.crashes[trial.number] == CRASHES:
            self._fail(trial, f"{what}, for the {CRASHES}th time ({_reason(error)}).")
        self._wait_again(trial, what)

    def _wait_again(self, trial: Trial, what: str) -> None:
        say(self.search.console, f"trial {trial.number}: {trial.name}: {what}{self._where(trial)}; submitted again")
        self.nodes.pop(trial.number, None)
        self.waiting.insert(0, trial)

    def _fail(self, trial: Trial, why: str) -> NoReturn:
        self.search.fail(trial)
        said = f"Trial {trial.number} ({trial.name}) failed{self._where(trial)}: {why}"
        raise LabError(f"{said} Run the same command again to continue without it.")

    def _where(self, trial: Trial) -> str:
        """Name the node a trial was last heard from."""
        known = self.nodes.get(trial.number)
        names = [f", on {node['NodeName']} ({node['NodeID'][:6]})" for node in ray.nodes() if node["NodeID"] == known]
        return "".join(names)


def _check_answers(address: str) -> None:
    """Knock before Ray does, which tries for most of a minute."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise LabError(f"--ray {address}: write auto or HOST:PORT, the address that `ray start --head` printed.")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise LabError(f"No Ray cluster answers at {address} ({reason}): start one with `ray start --head`.") from error


def _device(run: Run) -> str:
    """Choose what kind of device; Ray says which of a node's GPUs, and a worker sees no other."""
    name = run.training.device
    if name == "auto":
        return "cuda" if ray.cluster_resources().get("GPU") else "cpu"
    return "cuda" if name.startswith("cuda") else name


def _gone() -> set[str]:
    return {node["NodeID"] for node in ray.nodes() if not node["Alive"]}


def _room(needs: Mapping[str, int]) -> int:
    """Count the trials that the living nodes hold at a time."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return sum(min(int(node.get(kind, 0) / amount) for kind, amount in needs.items()) for node in nodes)


def _spelt(needs: Mapping[str, int]) -> str:
    return " and ".join(f"{amount} {kind}" for kind, amount in needs.items())


def _reason(error: BaseException) -> str:
    """Say an error of another machine in a line."""
    if missing := re.search(r"No module named '([\w.]+)'", str(error)):
        return f"Python finds no {missing[1]} there: every node needs pip install 'polyak[lab,ray]'"
    return (str(error) or type(error).__name__).strip().splitlines()[0].rstrip(".")
