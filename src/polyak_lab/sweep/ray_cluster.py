"""The trials of a sweep as tasks of a Ray cluster.

The driver, a process on a machine of the cluster, owns the study. It submits a trial whenever a
node has free resources and records the outcome. A trial whose node or worker is lost is submitted
again with the same values. Ray's own retries would do the same, but without a message, and without
end if the trial itself kills its worker. The tasks that run on the nodes are in `ray_worker`.
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
from polyak_lab.errors import LabError, first_line
from polyak_lab.files import explain_os_errors
from polyak_lab.recipes.recipe import on_device
from polyak_lab.recipes.resolve import resolve
from polyak_lab.sweep.trial import Outcome, Trial, copy_results_back, read_outcome

if TYPE_CHECKING:
    from polyak_lab.sweep.search import Search

# Else Ray retries an unreachable address for minutes.
os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")
# Else Ray prints a page for every lost node.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")

try:
    import ray
    from ray.exceptions import NodeDiedError, OutOfMemoryError, RayError, RayTaskError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError as error:
    raise LabError("polyak sweep --ray needs Ray: install it with pip install 'polyak[ray]'.") from error
else:
    from polyak_lab.sweep.ray_worker import Mailbox, run_task

# As on the command line: waiting threads sleep.
ENVIRONMENT = {"env_vars": {"OMP_WAIT_POLICY": "PASSIVE"}}
NODE_LOST = "the node was lost"
CAUSES = {NodeDiedError: NODE_LOST, OutOfMemoryError: "the node was short of memory"}
# Of one trial's worker while its node is alive; more are caused by the trial itself.
MAX_CRASHES = 5
POLL_INTERVAL = 5.0  # seconds between two checks of the nodes


@contextmanager
def cluster(address: str) -> Iterator["Cluster"]:
    """Connect to a cluster; at the end, stop every trial of this sweep and disconnect."""
    _check_reachable(address)
    _connect(address)
    try:
        yield Cluster(address)
    except RayError as error:
        raise LabError(f"The Ray cluster at {address} stopped this sweep ({_reason(error)}).") from error
    finally:
        ray.shutdown()


def _connect(address: str) -> None:
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, runtime_env=ENVIRONMENT)
    except (RayError, ConnectionError, RuntimeError, ValueError) as error:
        raise LabError(f"The Ray cluster at {address} cannot be used ({_reason(error)}).") from error
    finally:
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray's own handler exits without a message


class Cluster:
    """Runs the trials of a sweep on the nodes of a Ray cluster."""

    def __init__(self, address: str) -> None:
        self.address = address

    def resolve(self, run: Run) -> Run:
        """Resolve a run for the nodes; this machine does not need their device."""
        return on_device(resolve(on_device(run, "cpu")), _device(run))

    def run(self, search: "Search", trials: int) -> None:
        """Run trials on all nodes until so many more are finished."""
        base = search.base
        needs = {"GPU": 1} if _device(base) == "cuda" else {"CPU": base.training.threads or 1}
        if not _capacity(needs):
            resources = _format_resources(needs)
            raise LabError(f"No node of the Ray cluster at {self.address} has {resources}, which a trial needs.")
        _Scheduler(search, trials, needs).run()


class _Scheduler:
    """The trials that are running or waiting, and the number that remains."""

    def __init__(self, search: "Search", remaining: int, needs: Mapping[str, int]) -> None:
        self.search = search
        self.remaining = remaining
        self.needs = needs
        self.task = run_task.options(num_cpus=needs.get("CPU", 0), num_gpus=needs.get("GPU", 0))
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        mailbox: Any = Mailbox  # which ray.remote has made an actor class
        self.mailbox = mailbox.options(scheduling_strategy=here).remote()
        self.report = self.mailbox.next.remote()
        self.running: dict[ray.ObjectRef, Trial] = {}
        self.waiting: list[Trial] = []
        self.nodes: dict[int, str] = {}
        self.crashes: Counter[int] = Counter()

    def run(self) -> None:
        """Submit trials, and handle reports and results as they arrive."""
        is_waiting = False
        while self.remaining:
            self._give_up_lost_nodes()
            self._submit()
            if not self.running and self.remaining and not is_waiting:
                say(self.search.console, f"No node with {_format_resources(self.needs)} is left: waiting for one.")
            is_waiting = not self.running
            ready, _ = ray.wait([self.report, *self.running], timeout=POLL_INTERVAL)
            for reference in ready:
                self._handle_result(reference) if reference in self.running else self._answer_report()

    def _give_up_lost_nodes(self) -> None:
        """Resubmit the trials of dead nodes at once; Ray itself may wait for minutes."""
        dead = _dead_nodes()
        for reference, trial in [*self.running.items()]:
            if self.nodes.get(trial.number) in dead:
                del self.running[reference]
                self._resubmit(trial, NODE_LOST)

    def _submit(self) -> None:
        """Submit as many trials as fit, since Ray would start queued tasks too early."""
        capacity = _capacity(self.needs)
        while len(self.running) < capacity and (trial := self._next_trial()) is not None:
            folder = trial.run_folder()
            if folder.finished:
                self._record(trial, read_outcome(folder), ", done before")
                continue
            with explain_os_errors("make the run folder", trial.folder):
                trial.folder.mkdir(parents=True, exist_ok=True)
            self.running[self.task.remote(trial, self.mailbox)] = trial

    def _next_trial(self) -> Trial | None:
        """Return a trial whose folder is not in use: a waiting one, else a new one."""
        busy = {trial.folder for trial in self.running.values()}
        while len(self.waiting) + len(self.running) < self.remaining:
            if any(trial.folder not in busy for trial in self.waiting):
                break
            self.waiting.append(self.search.ask())
        free = next((trial for trial in self.waiting if trial.folder not in busy), None)
        if free is not None:
            self.waiting.remove(free)
        return free

    def _answer_report(self) -> None:
        """Answer the oldest report; a worker on a node given up is stopped."""
        number, report = ray.get(self.report)
        self.report = self.mailbox.next.remote()
        prune = report.node in _dead_nodes()
        if not prune:
            self.nodes[report.number] = report.node
            prune = self.search.should_prune(report.number, report.epoch, report.score)
        self.mailbox.answer.remote(number, prune)

    def _handle_result(self, reference: ray.ObjectRef) -> None:
        trial = self.running.pop(reference)
        try:
            result = ray.get(reference)
        except RayTaskError as error:
            self._fail(trial, f"{_reason(error.cause)}.")
        except RayError as error:
            self._handle_crash(trial, error)
        else:
            if result.error_text:
                self._fail(trial, result.error_text)
            copy_results_back(trial, result.files)
            self._record(trial, result.outcome, self._where(trial))

    def _record(self, trial: Trial, outcome: Outcome, where: str) -> None:
        self.search.tell(trial, outcome, where)
        self.remaining -= 1

    def _handle_crash(self, trial: Trial, error: RayError) -> None:
        """Resubmit a trial whose worker died, unless that has happened too often."""
        what = CAUSES.get(type(error), "its worker died")
        self.crashes[trial.number] += what != NODE_LOST
        if self.crashes[trial.number] == MAX_CRASHES:
            self._fail(trial, f"{what}, for the {MAX_CRASHES}th time ({_reason(error)}).")
        self._resubmit(trial, what)

    def _resubmit(self, trial: Trial, what: str) -> None:
        say(self.search.console, f"trial {trial.number}: {trial.name}: {what}{self._where(trial)}; submitted again")
        self.nodes.pop(trial.number, None)
        self.waiting.insert(0, trial)

    def _fail(self, trial: Trial, why: str) -> NoReturn:
        self.search.fail(trial)
        message = f"Trial {trial.number} ({trial.name}) failed{self._where(trial)}: {why}"
        raise LabError(f"{message} Run the same command again to continue without it.")

    def _where(self, trial: Trial) -> str:
        """Name the node of a trial's last report."""
        known = self.nodes.get(trial.number)
        names = [f", on {node['NodeName']} ({node['NodeID'][:6]})" for node in ray.nodes() if node["NodeID"] == known]
        return "".join(names)


def _check_reachable(address: str) -> None:
    """Check the address first, since Ray retries it for most of a minute."""
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
    """Return the kind of device; Ray assigns one of the node's GPUs to each worker."""
    name = run.training.device
    if name == "auto":
        return "cuda" if ray.cluster_resources().get("GPU") else "cpu"
    return "cuda" if name.startswith("cuda") else name


def _dead_nodes() -> set[str]:
    return {node["NodeID"] for node in ray.nodes() if not node["Alive"]}


def _capacity(needs: Mapping[str, int]) -> int:
    """Return how many trials fit on the live nodes at a time."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return sum(min(int(node.get(kind, 0) / amount) for kind, amount in needs.items()) for node in nodes)


def _format_resources(needs: Mapping[str, int]) -> str:
    return " and ".join(f"{amount} {kind}" for kind, amount in needs.items())


def _reason(error: BaseException) -> str:
    """Return the first line of an error of another machine."""
    if missing := re.search(r"No module named '([\w.]+)'", str(error)):
        return f"Python finds no {missing[1]} on the node: every node needs pip install 'polyak[lab,ray]'"
    return first_line(error)
