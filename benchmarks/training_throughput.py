"""Train with the runner and with the plain loop, interleaved in one process, and print images/s and their ratios.

    python benchmarks/training_throughput.py [--model resnet20] [--images 1280] [--rounds 5] [--threads 2]

The plain loop is the usual one: a Dataset that crops, flips and normalises one image at a time, a DataLoader with
worker processes (8 on a GPU, one per thread on a CPU), images moved to the device batch by batch, and `loss.item()`
after every step. Both train the same model with the same optimizer on the same random images; the ratio is the median
over rounds. The runner trains as its command line does, with deterministic algorithms.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import polyak
from polyak_lab import models
from polyak_lab.config import run as config
from polyak_lab.data import Dataset as Tensors
from polyak_lab.data import Split
from polyak_lab.progress import Progress
from polyak_lab.recipes.resolve import resolve
from polyak_lab.training import build
from polyak_lab.training.determinism import deterministic
from polyak_lab.training.loop import choose_step, train_epoch
from timing import positive

BATCH = 128
MEAN, STD = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2023, 0.1994, 0.2010])


class OneByOne(Dataset[tuple[Tensor, int]]):
    """Images that are cropped, flipped and normalised one at a time."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        top, left = torch.randint(9, (2,)).tolist()
        image = F.pad(self.split.inputs[index], (4, 4, 4, 4))[:, top : top + 32, left : left + 32]
        image = image.flip(2) if torch.rand(1) < 0.5 else image
        return (image.float() / 255 - MEAN[:, None, None]) / STD[:, None, None], int(self.split.targets[index])


def plain(split: Split, model: str, device: str, workers: int) -> Callable[[], object]:
    """Return one epoch of the plain loop."""
    network = models.build(model, (3, 32, 32), 10).to(device)
    optimizer = polyak.ALIG(network.parameters(), lr=0.1, momentum=0.9)
    loader = DataLoader(
        OneByOne(split), BATCH, shuffle=True, num_workers=workers, persistent_workers=True, pin_memory=device != "cpu"
    )

    def epoch() -> None:
        for images, targets in loader:
            loss = F.cross_entropy(network(images.to(device)), targets.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step(loss=loss)
            loss.item()

    return epoch


def runner(data: Tensors, model: str, device: str, options: dict[str, Any]) -> Callable[[], object]:
    """Return one epoch of the runner."""
    training = config.Training(epochs=1, batch_size=BATCH, device=device, channels_last=True, **options)
    optimizer = config.Optimizer("alig", options={"lr": 0.1, "momentum": 0.9})
    run = resolve(config.Run(config.Data("cifar10", augment=True), config.Model(model), optimizer, training))
    session, quiet = build.build_session(run, data), Progress(Console(quiet=True), epochs=False)
    step = choose_step(run)

    def epoch() -> None:
        with deterministic(device, None):
            train_epoch(session, step, 0, quiet).loss()

    return epoch


def seconds(epoch: Callable[[], object]) -> float:
    start = time.perf_counter()
    epoch()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--images", type=positive, default=1280)
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--threads", type=positive, default=2)
    parser.add_argument("--device", default="cpu")
    flags = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the runner's command line does
    torch.set_num_threads(flags.threads)
    on_gpu = flags.device != "cpu"
    split = Split(torch.randint(256, (flags.images, 3, 32, 32), dtype=torch.uint8), torch.randint(10, (flags.images,)))
    data = Tensors("random", split, split, 10, "cross_entropy", MEAN, STD)
    bfloat16, graph = {"precision": "bfloat16"}, {"cuda_graph": True}
    ways: dict[str, dict[str, Any]] = {"float32": {}, "bfloat16": bfloat16}
    if on_gpu:
        ways["bfloat16, CUDA graph"] = {**bfloat16, **graph}
        ways["bfloat16, compiled, CUDA graph"] = {**bfloat16, **graph, "compile": True}
    epochs = {f"runner, {way}": runner(data, flags.model, flags.device, options) for way, options in ways.items()}
    epochs = {"plain": plain(split, flags.model, flags.device, 8 if on_gpu else flags.threads), **epochs}
    report(epochs, flags)


def report(epochs: dict[str, Callable[[], object]], flags: argparse.Namespace) -> None:
    """Time them by turns after one epoch of each to warm up, and print what came out."""
    for epoch in epochs.values():
        epoch()
    times = [{name: seconds(epoch) for name, epoch in epochs.items()} for _ in range(flags.rounds)]
    print(f"torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores, {flags.threads} threads, {flags}")
    for name in epochs:
        ratios = [pair["plain"] / pair[name] for pair in times]
        speed = flags.images / statistics.median(pair[name] for pair in times)
        print(
            f"{name}: {speed:,.0f} images/s, {statistics.median(ratios):.2f} times the plain loop "
            f"({flags.rounds} rounds, {min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
