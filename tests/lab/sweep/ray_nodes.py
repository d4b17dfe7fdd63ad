"""Nodes of a real Ray cluster on this machine, each in a process group of its own."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_health_check_initial_delay_ms": "1000",  # a dead node is noticed after seconds
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_enable_metrics_collection": "0",
}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Node:
    """One `ray start` with one CPU, and everything it started."""

    def __init__(self, name, place, *arguments, **environment):
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=1"]
        command += ["--object-store-memory=100000000", "--disable-usage-stats", f"--node-name={name}"]
        self.log = Path(place, f"{name}-{time.time_ns()}.log")
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, f"--temp-dir={place}", *arguments],
                env={**os.environ, **QUIET, **environment},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        if not self._starts():
            self.kill()
            raise RuntimeError(self.log.read_text())

    def _starts(self):
        until = time.monotonic() + 60
        while self.process.poll() is None and time.monotonic() < until:
            if "Ray runtime started" in self.log.read_text():
                return True
            time.sleep(0.1)
        return False

    def workers(self):
        """The processes of this node that are at work on a trial right now."""
        return [pid for pid, title in self._processes() if title.startswith("ray::run_task")]

    def _processes(self):
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if os.getsid(int(entry.name)) == self.process.pid:
                    yield int(entry.name), (entry / "cmdline").read_text()
            except (ProcessLookupError, FileNotFoundError):
                continue

    def kill(self):
        """SIGKILL every process of the node; returns how many trials it was at."""
        for pid, _ in (before := [*self._processes()]):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()
        return sum(title.startswith("ray::run_task") for _, title in before)


class Nodes:
    """A head and the nodes that join it; leaving kills them all."""

    def __init__(self):
        self.place = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # Ray's sockets allow no long path
        self.address = f"127.0.0.1:{free_port()}"
        head = ("--head", f"--port={self.address.rpartition(':')[2]}", "--include-dashboard=false", "--num-gpus=1")
        self.all = [Node("one", self.place, *head)]

    def join(self, name, **environment):
        self.all.append(Node(name, self.place, f"--address={self.address}", **environment))
        return self.all[-1]

    def close(self):
        for node in reversed(self.all):
            node.kill()
        shutil.rmtree(self.place, ignore_errors=True)
