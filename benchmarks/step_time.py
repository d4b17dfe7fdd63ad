"""Time a step of each optimizer against torch's fused SGD, interleaved in one process, and print the ratios.

    python benchmarks/step_time.py [--model resnet34] [--rounds 15] [--threads 2] [--device cpu]

A ratio is the median over rounds of this step's time over fused SGD's in the same round; the quartiles stand behind it.
"""

import argparse
import importlib.util
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from rich.console import Console
from rich.table import Table

import polyak
from models import SHAPES

Step = Callable[[], object]


class AuthorsALIG(torch.optim.Optimizer):
    """ALI-G as its paper's pseudo-code spells it, tensor by tensor, with the loss and the norm read by the host."""

    def __init__(self, params, lr: float, momentum: float, radius: float | None) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})
        self.radius = radius
        for p in self.param_groups[0]["params"]:
            self.state[p]["v"] = torch.zeros_like(p)

    @torch.no_grad()
    def step(self, loss: float) -> None:
        group = self.param_groups[0]
        norm = sum(p.grad.norm() ** 2 for p in group["params"])
        gamma = min(float(loss / (norm + 1e-5)), group["lr"])
        for p in group["params"]:
            v = self.state[p]["v"]
            p.add_(p.grad, alpha=-gamma)
            v.mul_(group["momentum"]).add_(p.grad, alpha=-gamma)
            p.add_(v, alpha=group["momentum"])
        if self.radius is not None:
            size = math.sqrt(sum(float(p.norm() ** 2) for p in group["params"]))
            if size > self.radius:
                for p in group["params"]:
                    p.mul_(self.radius / size)


def parameters(model: str, device: str) -> list[torch.nn.Parameter]:
    """Return parameters of a model's shapes, with gradients."""
    draw = torch.Generator(device).manual_seed(0)
    made = []
    for shape in SHAPES[model]():
        p = torch.nn.Parameter(torch.randn(shape, generator=draw, device=device) * 0.05)
        p.grad = torch.randn(shape, generator=draw, device=device) * 0.01
        made.append(p)
    return made


def contestants(model: str, device: str) -> Iterator[tuple[str, Step]]:
    """Yield every optimizer by name, the yardstick first."""
    loss = torch.ones((), device=device)

    def ours(**options) -> Step:
        optimizer = polyak.ALIG(parameters(model, device), lr=0.1, **options)
        return lambda: optimizer.step(loss=loss)

    nesterov = {"lr": 0.1, "momentum": 0.9, "nesterov": True}
    yield "torch SGD, fused", torch.optim.SGD(parameters(model, device), **nesterov, fused=True).step
    yield "torch SGD, default", torch.optim.SGD(parameters(model, device), **nesterov).step
    yield "torch AdamW, fused", torch.optim.AdamW(parameters(model, device), fused=True).step
    yield "ALI-G, no momentum", ours()
    yield "ALI-G, momentum", ours(momentum=0.9)
    yield "ALI-G, adjusted momentum", ours(momentum=0.9, adjusted_momentum=True)
    yield "ALI-G, momentum, ball inactive", ours(momentum=0.9, constraint=polyak.L2Ball(1e6))
    yield "ALI-G, momentum, ball active", ours(momentum=0.9, constraint=polyak.L2Ball(1.0))
    yield "ALI-G, momentum, foreach", ours(momentum=0.9, foreach=True)
    for name, radius in (("the paper's pseudo-code", None), ("the same, ball active", 1.0)):
        literal = AuthorsALIG(parameters(model, device), lr=0.1, momentum=0.9, radius=radius)
        yield name, lambda literal=literal: literal.step(loss)
    if importlib.util.find_spec("pytorch_optimizer"):
        from pytorch_optimizer import AliG

        rival = AliG(parameters(model, device), max_lr=0.1, momentum=0.9)
        yield "pytorch_optimizer AliG", lambda: rival.step(lambda: 1.0)


def times(steps: dict[str, Step], rounds: int, device: str) -> dict[str, list[float]]:
    """Return each step's seconds in every round, after two rounds that do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds + 2):
        for name, step in steps.items():
            _wait(device)
            start = time.perf_counter()
            step()
            _wait(device)
            seconds[name].append(time.perf_counter() - start)
    return {name: column[2:] for name, column in seconds.items()}


def _wait(device: str) -> None:
    if device != "cpu":
        torch.accelerator.synchronize()


def show(model: str, seconds: dict[str, list[float]], console: Console) -> None:
    """Print one table."""
    yardstick = next(iter(seconds.values()))
    table = Table(title=f"{model}: {statistics.median(yardstick) * 1e6:.0f} µs per step of fused SGD")
    for heading in ("optimizer", "ratio", "quartiles"):
        table.add_column(heading, justify="left" if heading == "optimizer" else "right")
    for name, column in seconds.items():
        low, middle, high = statistics.quantiles([a / b for a, b in zip(column, yardstick, strict=True)], n=4)
        table.add_row(name, f"{middle:.2f}", f"{low:.2f} to {high:.2f}")
    console.print(table)


def main() -> None:
    """Time the chosen models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", choices=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    console = Console()
    where = platform.machine() if chosen.device == "cpu" else torch.cuda.get_device_name(chosen.device)
    console.print(
        f"torch {torch.__version__}, {chosen.device} ({where}), {chosen.threads} threads, n = {chosen.rounds}"
    )
    for model in chosen.model or ["mlp", "resnet34"]:
        rounds = chosen.rounds * (20 if model == "mlp" else 1)
        show(model, times(dict(contestants(model, chosen.device)), rounds, chosen.device), console)


if __name__ == "__main__":
    main()
