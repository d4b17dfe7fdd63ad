"""What the benchmarks of the step share: their options, the clock, and the line that says where they ran."""

import argparse
import platform
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path

import torch

Step = Callable[[], object]


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return the options that every benchmark has."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=positive, default=15)
    options.add_argument("--threads", type=positive, default=torch.get_num_threads())
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument("--out", type=writable)
    return options


def positive(text: str) -> int:
    """Read a number of rounds, threads or samples."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number


def writable(text: str) -> Path:
    """Read the path of the output, before hours of measurements."""
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text} must be a file in a folder that exists")
    return path


def headline(chosen: argparse.Namespace) -> str:
    """Set the number of threads, and say when, where and with what the benchmark runs."""
    torch.set_num_threads(chosen.threads)
    where = platform.machine() if chosen.device == "cpu" else torch.cuda.get_device_name(chosen.device)
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{date.today()}, {versions}, {chosen.device} ({where}), {chosen.threads} threads, {chosen.rounds} rounds"


def seconds(step: Step, device: str) -> float:
    """Return how long a step takes, the device's work included."""
    _wait(device)
    start = time.perf_counter()
    step()
    _wait(device)
    return time.perf_counter() - start


def by_turns(steps: Sequence[Step], rounds: int, device: str) -> list[list[float]]:
    """Time steps by turns, whose order turns as well; return a list per step, without the first three rounds."""
    found: list[list[float]] = [[] for _ in steps]
    for turn in range(rounds + 3):
        for i in range(len(steps)):
            which = (turn + i) % len(steps)
            found[which].append(seconds(steps[which], device))
    return [column[3:] for column in found]


def _wait(device: str) -> None:
    if device != "cpu":
        torch.accelerator.synchronize()
