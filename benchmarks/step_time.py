"""Time a step of each optimizer against torch's fused SGD, by turns in one process, and print the ratios.

    python benchmarks/step_time.py [--model resnet34] [--rounds 15] [--threads 2] [--device cpu] [--out FILE]

A ratio is the median over rounds of this step's time over fused SGD's in the same round; the quartiles stand behind it.
GB/s counts what a step must read and write at least (docs/cost.md), beside the speed of a copy. On a GPU, kernels and
waits of the host are counted as well. AliG of pytorch_optimizer and optax's Polyak SGD take part where installed.
"""

import argparse
import gc
import importlib.util
import math
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import NamedTuple

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


class Contestant(NamedTuple):
    """How to make a step, and how often it must at least read or write the vector of all parameters."""

    make: Callable[[str, str], Step]
    passes: int


def ours(**options) -> Callable[[str, str], Step]:
    def make(model: str, device: str) -> Step:
        optimizer = polyak.ALIG(parameters(model, device), lr=0.1, **options)
        loss = torch.ones((), device=device)
        return lambda: optimizer.step(loss=loss)

    return make


def torchs(cls: type, **options) -> Callable[[str, str], Step]:
    return lambda model, device: cls(parameters(model, device), lr=0.1, **options).step


def literal(radius: float | None) -> Callable[[str, str], Step]:
    def make(model: str, device: str) -> Step:
        optimizer = AuthorsALIG(parameters(model, device), lr=0.1, momentum=0.9, radius=radius)
        loss = torch.ones((), device=device)
        return lambda: optimizer.step(loss)

    return make


def released(radius: float | None) -> Callable[[str, str], Step]:
    def make(model: str, device: str) -> Step:
        from pytorch_optimizer import AliG
        from pytorch_optimizer.optimizer.alig import l2_projection

        own = parameters(model, device)
        project = None if radius is None else lambda: l2_projection(own, radius)
        optimizer = AliG(own, max_lr=0.1, momentum=0.9, projection_fn=project)
        return lambda: optimizer.step(lambda: 1.0)

    return make


def optax_sgd(model: str, device: str) -> Step:
    import jax
    import optax

    own = [jax.numpy.asarray(p.detach().cpu().numpy()) for p in parameters(model, "cpu")]
    rule = optax.chain(optax.polyak_sgd(0.1), optax.trace(0.9, nesterov=True))
    update = jax.jit(lambda state, own: rule.update(own, state, own, value=1.0), donate_argnums=0)
    apply = jax.jit(optax.apply_updates, donate_argnums=0)
    held = [rule.init(own), own]

    def step() -> None:
        updates, held[0] = update(held[0], held[1])
        held[1] = apply(held[1], updates)
        jax.block_until_ready(held[1])

    return step


NESTEROV = {"momentum": 0.9, "nesterov": True}
MOMENTUM = {"momentum": 0.9}
INSIDE, OUTSIDE = polyak.L2Ball(1e6), polyak.L2Ball(1.0)
YARDSTICK = Contestant(torchs(torch.optim.SGD, **NESTEROV, fused=True), 5)
CONTESTANTS = {
    "torch SGD, loop": Contestant(torchs(torch.optim.SGD, **NESTEROV, foreach=False), 5),
    "torch SGD, foreach": Contestant(torchs(torch.optim.SGD, **NESTEROV, foreach=True), 5),
    "torch AdamW, fused": Contestant(torchs(torch.optim.AdamW, fused=True), 7),
    "ALI-G, no momentum": Contestant(ours(), 4),
    "ALI-G, momentum": Contestant(ours(**MOMENTUM), 6),
    "ALI-G, momentum, fused": Contestant(ours(**MOMENTUM, fused=True), 6),
    "ALI-G, momentum, loop": Contestant(ours(**MOMENTUM, foreach=False), 6),
    "ALI-G, momentum, foreach": Contestant(ours(**MOMENTUM, foreach=True), 6),
    "ALI-G, adjusted": Contestant(ours(**MOMENTUM, adjusted_momentum=True), 7),
    "ALI-G, adjusted, fused": Contestant(ours(**MOMENTUM, adjusted_momentum=True, fused=True), 7),
    "ALI-G, ball inactive": Contestant(ours(**MOMENTUM, constraint=INSIDE), 6),
    "ALI-G, ball inactive, fused": Contestant(ours(**MOMENTUM, constraint=INSIDE, fused=True), 6),
    "ALI-G, ball active": Contestant(ours(**MOMENTUM, constraint=OUTSIDE), 8),
    "ALI-G, ball active, fused": Contestant(ours(**MOMENTUM, constraint=OUTSIDE, fused=True), 8),
    "authors' algorithm": Contestant(literal(None), 6),
    "authors' algorithm, ball active": Contestant(literal(1.0), 8),
}
if importlib.util.find_spec("pytorch_optimizer"):
    CONTESTANTS["pytorch_optimizer AliG"] = Contestant(released(None), 6)
    CONTESTANTS["pytorch_optimizer AliG, ball active"] = Contestant(released(1.0), 8)
if importlib.util.find_spec("optax"):
    CONTESTANTS["optax polyak_sgd, trace"] = Contestant(optax_sgd, 6)


def seconds(step: Step, device: str) -> float:
    _wait(device)
    start = time.perf_counter()
    step()
    _wait(device)
    return time.perf_counter() - start


def times(one: Step, other: Step, rounds: int, device: str) -> list[tuple[float, float]]:
    """Time two steps by turns, after three rounds that do not count."""
    found = [(seconds(one, device), seconds(other, device)) for _ in range(rounds + 3)]
    return found[3:]


def _wait(device: str) -> None:
    if device != "cpu":
        torch.accelerator.synchronize()


def counts(step: Step, device: str) -> list[str]:
    """Count the kernels and the waits of one step on a GPU, and its largest need of memory in MiB."""
    if device == "cpu":
        return []
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        step()
        peak = torch.cuda.max_memory_allocated() - before
    events = found.events()
    kernels = sum(event.device_type == torch.autograd.DeviceType.CUDA for event in events)
    waits = sum("Synchronize" in event.name for event in events)
    return [str(kernels), str(waits), f"{peak / 2**20:.1f}"]


def copy_speed(model: str, device: str) -> float:
    """Return the bytes per second of a copy as large as the model, read and write counted."""
    source = torch.ones(sum(p.numel() for p in parameters(model, device)), device=device)
    target = torch.empty_like(source)
    taken = statistics.median(seconds(lambda: target.copy_(source), device) for _ in range(7))
    return 2 * source.nbytes / taken


def measure(model: str, rounds: int, device: str) -> Table:
    """Time every contestant against the yardstick; only these two are in memory at a time."""
    size = sum(p.nbytes for p in parameters(model, device))
    rows, yardsticks = [], []
    for name, contestant in CONTESTANTS.items():
        gc.collect()
        yardstick, step = YARDSTICK.make(model, device), contestant.make(model, device)
        taken = times(yardstick, step, rounds, device)
        low, middle, high = statistics.quantiles([b / a for a, b in taken], n=4)
        speed = contestant.passes * size / statistics.median(b for _, b in taken)
        yardsticks += [a for a, _ in taken]
        rows.append([name, f"{middle:.2f}", f"{low:.2f} to {high:.2f}", f"{speed / 1e9:.1f}", *counts(step, device)])
    base = statistics.median(yardsticks)
    title = f"{model}: {size / 4e6:.2f} million numbers; torch SGD, fused: {base * 1e6:.0f} µs, "
    title += f"{YARDSTICK.passes * size / base / 1e9:.1f} GB/s; a copy: {copy_speed(model, device) / 1e9:.1f} GB/s"
    table = Table(title=title)
    extra = ["kernels", "waits", "MiB"] if device != "cpu" else []
    for heading in ("optimizer", "ratio", "quartiles", "GB/s", *extra):
        table.add_column(heading, justify="left" if heading == "optimizer" else "right")
    for row in rows:
        table.add_row(*row)
    return table


def main() -> None:
    """Time the chosen models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", choices=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    console = Console(record=True, width=120)
    where = platform.machine() if chosen.device == "cpu" else torch.cuda.get_device_name(chosen.device)
    console.print(
        f"{date.today()}, torch {torch.__version__}, {chosen.device} ({where}), {chosen.threads} threads, "
        f"{chosen.rounds} rounds (20 times as many for the mlp)"
    )
    for model in chosen.model or ["mlp", "resnet34"]:
        console.print(measure(model, chosen.rounds * (20 if model == "mlp" else 1), chosen.device))
    if chosen.out is not None:
        chosen.out.write_text(console.export_text())


if __name__ == "__main__":
    main()
