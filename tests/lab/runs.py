"""Small real runs on digits, for the tests of the runner."""

import multiprocessing
import signal
import warnings
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from rich.console import Console

from polyak_lab import progress
from polyak_lab.cli.app import main
from polyak_lab.config import run as config
from polyak_lab.recipes.resolve import resolve
from polyak_lab.runs.folder import RunFolder
from polyak_lab.runs.stored import Label
from polyak_lab.training.loop import train

ROW = Label("row")
ALIG = config.Optimizer("alig", l2_ball=20.0, options={"lr": 1.0, "momentum": 0.9})


def run(optimizer=ALIG, schedule="constant", data="digits", model="mlp", augment=False, **training):
    training = {"epochs": 3, "batch_size": 256, "threads": 1, "device": "cpu", **training}
    return config.Run(
        config.Data(data, augment),
        config.Model(model),
        optimizer,
        config.Training(**training),
        config.Schedule(schedule),
    )


def execute(path: Path, wanted: config.Run, label: Label = ROW) -> RunFolder:
    resolved = resolve(wanted)
    folder = RunFolder(path, resolved, label)
    train(resolved, folder, progress.Progress(Console(quiet=True), epochs=False))
    return folder


def in_child(path: Path, wanted: config.Run) -> multiprocessing.Process:
    """Start the run in a process of its own that need not import torch again."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "polyak_lab.training.loop", "polyak_lab.recipes.resolve"])
    child = context.Process(target=execute, args=(path, wanted))
    child.start()
    return child


def call(*arguments: object) -> int:
    """Run the command line in this process and return its exit code."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return stop.code
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stored_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a sharded run's checkpoint."""
    state = torch.load(path / "checkpoint.pt", weights_only=True)["state"]
    reader = dcp.FileSystemReader(path / state["tensors"]["folder"])
    table = reader.read_metadata().state_dict_metadata
    tensors = {name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in table.items()}
    with warnings.catch_warnings(action="ignore"):  # one process without a process group
        dcp.load(tensors, storage_reader=reader)
    return tensors
