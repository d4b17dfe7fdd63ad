"""Time whole training steps with ALI-G and with SGD by turns, and print what the swap costs.

    python benchmarks/training_step.py [--batch 128] [--rounds 15] [--threads 2] [--device cpu] [--out FILE]

The network is the note's ResNet-34 on images of 32 x 32. Forward and backward are the same for both optimizers, so they
are timed apart from the step: the change of a whole training step is the difference of the two steps over the whole.
"""

import statistics
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console

import polyak
from polyak_lab import models
from timing import headline, parser, positive, seconds

OPTIMIZERS: dict[str, Callable[[Iterator[torch.nn.Parameter]], Any]] = {
    "torch SGD, Nesterov, fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, fused=True),
    "ALI-G, momentum, fused": lambda p: polyak.ALIG(p, lr=0.1, momentum=0.9, fused=True),
    "ALI-G, momentum": lambda p: polyak.ALIG(p, lr=0.1, momentum=0.9),
    "ALI-G, momentum, ball, fused": lambda p: polyak.ALIG(
        p, lr=0.1, momentum=0.9, constraint=polyak.L2Ball(100.0), fused=True
    ),
}


def times(batch: int, rounds: int, device: str) -> dict[str, list[tuple[float, float]]]:
    """Return, for every optimizer and round, the seconds of forward and backward and those of the step."""
    torch.manual_seed(0)
    placed: dict[str, Any] = {"device": device, "memory_format": torch.channels_last}
    model = models.build("resnet34", (3, 32, 32), 10).to(**placed)
    images = torch.randn(batch, 3, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
    targets = torch.randint(10, (batch,), device=device)
    with warnings.catch_warnings(action="ignore"):  # ResNet-34's initial norm is above the radius
        optimizers = {name: make(model.parameters()) for name, make in OPTIMIZERS.items()}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in OPTIMIZERS}
    losses: list[torch.Tensor] = []

    def gradient() -> None:
        model.zero_grad()
        losses[:] = [F.cross_entropy(model(images), targets)]
        losses[0].backward()

    for _ in range(rounds + 2):
        for name, optimizer in optimizers.items():
            ours = isinstance(optimizer, polyak.PolyakOptimizer)
            before = seconds(gradient, device)
            step = (lambda: optimizer.step(loss=losses[0])) if ours else optimizer.step  # noqa: B023
            found[name].append((before, seconds(step, device)))
    return {name: column[2:] for name, column in found.items()}


def main() -> None:
    """Time and print."""
    options = parser(__doc__)
    options.add_argument("--batch", type=positive, default=128)
    chosen = options.parse_args()
    console = Console(record=True, width=120)
    console.print(f"{headline(chosen)}, ResNet-34, batch {chosen.batch}, float32", highlight=False)
    found = times(chosen.batch, chosen.rounds, chosen.device)
    gradient = statistics.median(before for column in found.values() for before, _ in column)
    console.print(f"forward and backward: {gradient * 1e3:.1f} ms", highlight=False)
    yardstick = statistics.median(step for _, step in next(iter(found.values())))
    for name, column in found.items():
        step = statistics.median(step for _, step in column)
        console.print(
            f"{name}: step {step * 1e3:.2f} ms, {step / (gradient + step):.2%} of the training step; "
            f"the swap from SGD changes it by {(step - yardstick) / (gradient + yardstick):+.2%}",
            highlight=False,
        )
    if chosen.out is not None:
        chosen.out.write_text(console.export_text())


if __name__ == "__main__":
    main()
