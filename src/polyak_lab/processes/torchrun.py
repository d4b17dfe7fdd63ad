"""The environment variables that torchrun sets, read without importing torch."""

import os
import signal
import sys
import time
from typing import NoReturn

from polyak_lab.errors import LabError

# Seconds; torchrun stops all processes when one fails, and rank 0 must print first.
EXIT_DELAY = 2.0


class SingleRankError(LabError):
    """An error that only one process has, and which that process prints itself."""


def world_size() -> int:
    """Return the number of processes; 1 without torchrun."""
    is_launched = {"RANK", "LOCAL_RANK", "WORLD_SIZE"} <= os.environ.keys()
    return int(os.environ["WORLD_SIZE"]) if is_launched else 1


def rank() -> int:
    """Return the rank of this process."""
    return int(os.environ["RANK"]) if world_size() > 1 else 0


def local_world_size() -> int:
    """Return the number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))


def local_rank() -> int:
    """Return the rank of this process on its machine, which is the index of its GPU."""
    return int(os.environ["LOCAL_RANK"]) if world_size() > 1 else 0


def exit_process(status: int) -> NoReturn:
    """End this process.

    With several processes the interpreter is not shut down: gloo's threads outlive the process
    group and can abort it.
    """
    if world_size() == 1:
        sys.exit(status)
    if status and rank():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(EXIT_DELAY)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
