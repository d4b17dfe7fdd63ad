"""Start a script once per rank, wait for all, and leave no process behind."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]


def launch(script: str, world: int, folder: Path, *arguments: str, seconds: float = 240.0) -> None:
    """Run tests/distributed/<script> on `world` ranks that meet in a folder; raise if one fails or hangs."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS), "PYTHONWARNINGS": "ignore"}
    commands = [
        [sys.executable, str(TESTS / "distributed" / script), str(rank), str(world), str(folder), *arguments]
        for rank in range(world)
    ]
    logs = [(folder / f"rank-{rank}.log").open("w+", encoding="utf-8") for rank in range(world)]
    ranks = [
        subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        for command, log in zip(commands, logs, strict=True)
    ]
    try:
        codes = [rank.wait(timeout=seconds) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
        for log in logs:
            log.close()
    if any(codes):
        raise RuntimeError("\n".join((folder / f"rank-{rank}.log").read_text()[-3000:] for rank in range(world)))
