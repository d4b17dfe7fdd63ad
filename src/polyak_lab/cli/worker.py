"""A process of `polyak run --jobs N`: trains one run after the other, and sends their progress through a pipe."""

import ctypes
import signal
import sys
import traceback
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import Any, NoReturn, final

import torch
from rich.console import Console

from polyak_lab.config.run import Run
from polyak_lab.errors import LabError, is_out_of_memory
from polyak_lab.progress import READ_EVERY, Numbers, Progress, Readable
from polyak_lab.runs.folder import RunFolder
from polyak_lab.training.loop import train

TERMINATED = 128 + signal.SIGTERM
PR_SET_PDEATHSIG = 1  # of linux/prctl.h
FEWER_JOBS = "Fewer --jobs need less memory."


def work(pipe: "Connection[Any, Any]", threads: int) -> None:
    """Train the runs received through the pipe, until the main process ends or SIGTERM arrives."""
    _die_with_main_process()
    try:
        signal.signal(signal.SIGTERM, _terminate)
        torch.set_num_threads(threads)
        with suppress(EOFError, OSError):  # the main process has ended
            while True:
                run, path, label = pipe.recv()
                if not _attempt(run, RunFolder(path, run, label), pipe):
                    return
    except KeyboardInterrupt:
        sys.exit(TERMINATED)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _die_with_main_process() -> None:
    """Ask Linux to kill this process when the main process ends: a run that hangs in its own code would stay."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    """Stop training at the first SIGTERM; a launcher may send another one."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def _attempt(run: Run, folder: RunFolder, pipe: "Connection[Any, Any]") -> bool:
    """Train a run and send how it ended; return whether this process can train another one."""
    try:
        train(run, folder, _Relay(pipe))
    except LabError as error:
        hint = f" {FEWER_JOBS}" if is_out_of_memory(error.__cause__) else ""
        pipe.send(("failed", (f"{error}{hint}", error.details)))
    except Exception as error:
        pipe.send(("broken", (_describe(error),)))
        return False
    else:
        pipe.send(("done", ()))
    return True


def _describe(error: Exception) -> str:
    """Describe an unexpected error and where it was raised, in one line."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    what = " ".join(str(error).split())
    what = what if len(what) <= 160 else f"{what[:159]}…"
    hint = f" {FEWER_JOBS}" if is_out_of_memory(error) else ""
    where = f"{type(error).__name__} in {Path(place.filename).name}, line {place.lineno}"
    return f"{where}: {what.rstrip('.')}.{hint}" if what else f"{where}.{hint}"


@dataclass(frozen=True)
class Latest:
    """The numbers of a step, already read from the device."""

    numbers: tuple[float, float | None, float]

    def latest(self) -> tuple[float, float | None, float]:
        """Return the three."""
        return self.numbers


@final
class _Relay(Progress):
    """Sends the progress of a run through a pipe; that of its steps a few times a second."""

    def __init__(self, pipe: "Connection[Any, Any]") -> None:
        super().__init__(Console(quiet=True), epochs=False)
        self.pipe = pipe
        self.unsent = 0
        self.sent_at = 0.0

    def run_started(self, epochs: int, steps: int, done: int) -> None:
        self._send("run_started", epochs, steps, done)

    def step(self, epoch: int, meter: Readable, count: int = 1) -> None:
        self.unsent += count
        if (now := monotonic()) - self.sent_at >= READ_EVERY:
            self.sent_at = now
            self._send("step", epoch, Latest(meter.latest()), self.unsent)
            self.unsent = 0

    def epoch_done(self, record: Numbers, timing: Numbers) -> None:
        self._send("epoch_done", dict(record), dict(timing))

    def run_finished(self, record: Numbers, seconds: float) -> None:
        self._send("run_finished", dict(record), seconds)

    def _send(self, name: str, *arguments: Any) -> None:
        self.pipe.send((name, arguments))
