"""Start the command line, or a script, in several processes by torchrun; leave no process behind."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
OURS = re.compile(r"^polyak: |/polyak_lab/")  # torchrun itself tells of every process that failed
POLYAK = ("--no-python", Path(sys.executable).parent / "polyak")


def start(*command: object, processes: int = 2) -> subprocess.Popen:
    """Start torchrun in a process group of its own."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes]
    paths = [str(HERE.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.Popen(
        [str(part) for part in (*launcher, *command)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def end(child: subprocess.Popen, seconds: float = 120.0) -> tuple[int, str, str]:
    """Wait for the end; return the exit code, what was printed, and our own error messages, tracebacks included."""
    try:
        printed, errors = child.communicate(timeout=seconds)
    finally:
        kill(child)
    sys.stderr.write(errors)  # pytest shows it where a test fails
    return child.returncode, printed, "".join(filter(OURS.search, errors.splitlines(True)))


def kill(child: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


def run(*command: object, processes: int = 2) -> tuple[int, str, str]:
    return end(start(*command, processes=processes))
