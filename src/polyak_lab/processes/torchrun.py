"""What torchrun tells a process about itself, read without torch."""

import os
import signal
import sys
import time
from typing import NoReturn

from polyak_lab.errors import LabError

PATIENCE = 2.0  # seconds; once a process has failed torchrun ends the others, and the first one is to say why


class AloneError(LabError):
    """What one process ran into alone, and so has to say itself."""


def size() -> int:
    """Count the processes that train together; 1 without torchrun."""
    return int(os.environ["WORLD_SIZE"]) if {"RANK", "LOCAL_RANK", "WORLD_SIZE"} <= os.environ.keys() else 1


def rank() -> int:
    """Name this process among all of them."""
    return int(os.environ["RANK"]) if size() > 1 else 0


def size_here() -> int:
    """Count the processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", size()))


def local_rank() -> int:
    """Name this process among those of its machine: the number of its GPU."""
    return int(os.environ["LOCAL_RANK"]) if size() > 1 else 0


def leave(code: int) -> NoReturn:
    """End this process; among several at once, as gloo's threads outlive their group and can abort a slow end."""
    if size() == 1:
        sys.exit(code)
    if code and rank():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(PATIENCE)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
