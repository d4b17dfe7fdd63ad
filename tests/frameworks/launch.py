"""Starting processes that train together; a time limit ends all of them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).parent


def launch(script: str, arguments: Sequence[str], size: int, seconds: float) -> list[str]:
    """Run a script of this folder in `size` processes and return what each printed; none outlives the call."""
    port = free_port()
    runs = [start(script, arguments, rank, size, port) for rank in range(size)]
    deadline = time.monotonic() + seconds
    try:
        outputs = [run.communicate(timeout=max(0.1, deadline - time.monotonic()))[0] for run in runs]
    finally:
        for run in runs:
            run.kill()
    for rank, run in enumerate(runs):
        assert run.returncode == 0, f"process {rank} of {script} ended with {run.returncode}:\n{outputs[rank][-4000:]}"
    return outputs


def start(script: str, arguments: Sequence[str], rank: int, size: int, port: int) -> subprocess.Popen[str]:
    """Start one of the processes."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    environment = os.environ | {name: str(value) for name, value in numbers.items()}
    environment |= {
        "MASTER_ADDR": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    command = [sys.executable, "-W", "ignore", str(FOLDER / script), *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
