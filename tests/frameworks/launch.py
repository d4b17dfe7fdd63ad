"""Starting processes that train together; when one fails or time is over, all of them end."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).parent


class ProcessError(AssertionError):
    """A process did not end well."""


def launch(script: str, arguments: Sequence[str], size: int, seconds: float) -> list[str]:
    """Run a script of this folder in `size` processes and return what each printed; none outlives the call."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / str(rank) for rank in range(size)]
        runs = [start(script, arguments, rank, port, file, size) for rank, file in enumerate(files)]
        try:
            wait(runs, time.monotonic() + seconds)
        finally:
            for run in runs:
                run.kill()
                run.wait()
        outputs = [file.read_text(encoding="utf-8") for file in files]
    for rank, run in enumerate(runs):
        if run.returncode:
            raise ProcessError(f"process {rank} of {script} ended with {run.returncode}:\n{outputs[rank][-4000:]}")
    return outputs


def start(
    script: str, arguments: Sequence[str], rank: int, port: int, output: Path, size: int
) -> subprocess.Popen[bytes]:
    """Start one of the processes."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    environment = os.environ | {name: str(value) for name, value in numbers.items()}
    environment |= {
        "MASTER_ADDR": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, "-W", "ignore", str(FOLDER / script), *arguments]
    with output.open("wb") as file:
        return subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)


def wait(runs: Sequence[subprocess.Popen[bytes]], deadline: float) -> None:
    """Wait until all have ended, or one has failed, or time is over."""
    while time.monotonic() < deadline:
        codes = [run.poll() for run in runs]
        if any(codes) or None not in codes:
            return
        time.sleep(0.1)


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
