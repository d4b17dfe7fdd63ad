"""Ctrl-C and SIGTERM: the first stops the command in order, a later one at once."""

import multiprocessing
import os
import signal
from time import monotonic
from types import FrameType

from polyak_lab.processes import torchrun

STOPPED = "polyak: stopped; run the same command again to resume."
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}
PATIENCE = 2.0  # seconds; launchers and terminals often send two signals where one was meant


class Terminated(KeyboardInterrupt):
    """SIGTERM, which stops a run just as Ctrl-C does."""


class _Stop:
    """The signal handler of a process."""

    def __init__(self) -> None:
        self.ends_since: float | None = None
        self.status = 0
        self.is_reported = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Raise at the first signal; exit at a second one that comes after PATIENCE."""
        if self.ends_since is None:
            self.end(STATUS[signal.Signals(number)])
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
        if monotonic() - self.ends_since > PATIENCE:
            if not self.is_reported and torchrun.rank() == 0:
                os.write(2, f"{STOPPED}\n".encode())
            for child in multiprocessing.active_children():  # which would go on without this process
                child.kill()
            os._exit(self.status)

    def end(self, status: int) -> None:
        """Record the status that the process ends with."""
        self.ends_since, self.status = monotonic(), status


_stop = _Stop()


def install() -> None:
    """Handle signals from here on; SIGINT stays ignored if the shell ignores it."""
    global _stop
    _stop = _Stop()
    signal.signal(signal.SIGTERM, _stop.handle)
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, _stop.handle)


def ends(status: int) -> None:
    """Record that the process is ending; a later signal prints no message."""
    _stop.end(status)
    _stop.is_reported = True
