"""Runs side by side, each in a process of its own: `polyak run --jobs N`.

Each worker process trains one run after the other and sends its progress through a pipe to the main
process, which prints it. A run that fails is reported, and the others continue. A worker exits
after any error except a LabError; the main process detects the end of its pipe and starts another
worker. Every run has the same folder and the same number of threads as without --jobs, so the
results are identical.
"""

import multiprocessing
import os
import signal
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from threading import current_thread, main_thread
from time import monotonic
from typing import Any, final

import torch

from polyak_lab.cli.worker import FEWER_JOBS, work
from polyak_lab.config.run import Run
from polyak_lab.console import warn
from polyak_lab.errors import LabError, RowError
from polyak_lab.processes import torchrun
from polyak_lab.progress import Progress
from polyak_lab.runs.folder import RunFolder
from polyak_lab.trackers import Tracking

# Seconds; a worker that has not ended by then is killed, which loses at most the current epoch.
PATIENCE = 10.0
CHECK_EVERY = 1.0  # seconds between two looks at the processes
KILLED = -9  # the exit code of a process that SIGKILL ended


@final
@dataclass(frozen=True)
class Job:
    """A run, its folder, and its name on the console."""

    name: str
    run: Run
    folder: RunFolder
    tracking: Tracking | None = None

    def tracked(self, shown: Progress) -> Progress:
        """Return a progress that also sends the metrics of the run to the tracker, if there is one."""
        shown.run_named(self.name)
        return shown if self.tracking is None else self.tracking.follow(shown, self.folder)


def check_jobs(count: int) -> None:
    """Refuse a number below 1, and torchrun with more than one job."""
    if count < 1:
        raise LabError(f"--jobs is {count}, but must be 1 or more.")
    if count > 1 and torchrun.world_size() > 1:
        raise LabError("torchrun trains one run in many processes, --jobs many runs side by side: choose one of them.")


def cores_warning(jobs: Sequence[Job], count: int) -> str | None:
    """Return a warning if the runs side by side have more threads than this machine has cores."""
    on_cpu = [job.run.training.threads or torch.get_num_threads() for job in jobs if job.run.training.device == "cpu"]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = sum(sorted(on_cpu)[-count:])
    if threads <= cores:
        return None
    available = "1 CPU core is" if cores == 1 else f"{cores} CPU cores are"
    advice = (
        "Fewer --jobs avoid" if max(on_cpu) == 1 else "Fewer --jobs, or threads = 1 in the recipe's training, avoid"
    )
    return (
        f"{min(count, len(jobs))} runs side by side have up to {threads} threads, but {available} "
        f"available: each run is slower than alone. {advice} that."
    )


def train_side_by_side(
    jobs: Sequence[Job],
    count: int,
    make_progress: Callable[[], Progress],
) -> int:
    """Train runs, `count` at a time, and return how many of them failed.

    Args:
        jobs: The unfinished runs.
        count: The number of worker processes.
        make_progress: Makes the progress display of one worker.
    """
    waiting = deque(jobs)
    workers = [_Worker(make_progress()) for _ in range(min(count, len(jobs)))]
    try:
        while True:
            for worker in workers:
                while worker.job is None and waiting:
                    worker.start(waiting.popleft())
            busy = {worker.pipe: worker for worker in workers if worker.job is not None}
            if not busy:
                return sum(worker.failures for worker in workers)
            for pipe in wait(list(busy), CHECK_EVERY):
                busy[pipe].receive()  # type: ignore[index]
            for worker in workers:
                worker.check()
    finally:
        until = monotonic() + PATIENCE
        for worker in workers:
            worker.stop()
        for worker in workers:
            worker.join(until - monotonic())


@final
class _Worker:
    """A worker process, as seen by the main process."""

    def __init__(self, shown: Progress) -> None:
        self.idle = self.shown = shown
        self.job: Job | None = None
        self.failures = 0
        self.process: Any = None
        self.pipe: Connection[Any, Any]

    def start(self, job: Job) -> None:
        """Send a run to the process; report it as failed if no process can be started."""
        self.job = job
        self.shown = job.tracked(self.idle)
        try:
            if self.process is not None and not self.process.is_alive():
                self._end()
            if self.process is None:
                self._start_process()
            self.pipe.send((job.run, job.folder.path, job.folder.label))
        except OSError as error:
            self._fail(self._end() if self.process else f"cannot start a process: {error.strerror or error}.")

    def receive(self) -> None:
        """Handle one message."""
        try:
            name, arguments = self.pipe.recv()
        except (EOFError, OSError):
            self._fail(self._end())
            return
        if name == "done":
            self.job = None
        elif name == "failed":
            self._fail(*arguments)
        elif name == "broken":
            self._end()
            self._fail(*arguments)
        else:
            getattr(self.shown, name)(*arguments)

    def check(self) -> None:
        """Report a run whose process has ended while processes that it started keep its pipe open."""
        if self.job is not None and self.process is not None and not self.process.is_alive() and not self.pipe.poll():
            self._fail(self._end())

    def stop(self) -> None:
        """Request the process to end; closing the pipe ends an idle one."""
        if self.process is not None:
            self.pipe.close()
            if self.job is not None:
                self.process.terminate()

    def join(self, seconds: float) -> bool:
        """Wait until the process has ended, and kill it after a while; return whether it ended by itself."""
        if self.process is None:
            return True
        self.process.join(max(0.0, seconds))
        if self.process.exitcode is not None:
            return True
        self.process.kill()
        self.process.join()
        return False

    def _start_process(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, worker_end = context.Pipe()
        process = context.Process(target=work, args=(worker_end, torch.get_num_threads()), daemon=False)
        try:
            with worker_end, warnings.catch_warnings(action="ignore"), _no_interrupt():
                process.start()  # warns if multiprocessing's tracker died
                self.process = process  # before an interrupt arrives, which has to stop it
        except BaseException:
            self.pipe.close()  # ends a process that was started, since it would be waited for
            raise

    def _end(self) -> str:
        """Wait until a process that closed its pipe has ended; return how it ended."""
        self.pipe.close()
        ended = self.join(PATIENCE)
        status, self.process = self.process.exitcode, None
        if not ended:
            return f"its process did not end within {PATIENCE:g} s and was killed; the checkpoint is kept."
        if status == KILLED:
            return f"its process was killed, as when a machine has no memory left; the checkpoint is kept. {FEWER_JOBS}"
        how = f"signal {-status} ({signal.strsignal(-status)})" if status < 0 else f"exit status {status}"
        return f"its process ended with {how}; the checkpoint is kept."

    def _fail(self, reason: str, details: str = "") -> None:
        self.failures += 1
        self.shown.run_failed()
        warn(RowError(f"{self.shown.name}: {reason}", details))
        self.job = None


@contextmanager
def _no_interrupt() -> Iterator[None]:
    """Block Ctrl-C for processes started meanwhile, since the main process handles it, and put it off in this one.

    A thread that does not block the signal may take it, so that its handler waits, too.
    """
    if not hasattr(signal, "pthread_sigmask") or current_thread() is not main_thread():
        yield
        return
    arrived: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, frame: arrived.append(number))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        signal.signal(signal.SIGINT, handler)
        if arrived:
            signal.raise_signal(signal.SIGINT)
