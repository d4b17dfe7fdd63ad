"""Show how the time of a step grows with parameters, tensors, groups and processes, and what a step sends.

    python benchmarks/scaling.py [--axis parameters] [--largest 3e8] [--rounds 9] [--threads 2] [--out FILE]

All optimizers of a line move the same parameters by turns. A cell is the median time of a step, and behind it the
median over rounds of its ratio to torch's fused SGD in the same round. Below each table stand the straight lines
through the medians (least squares, R²): their slope is what one more parameter, tensor or group costs. The processes
run on this machine and talk by gloo, so that their times say little about others; the collectives and bytes, which a
profiler counted during one step of rank 0, do not depend on the machine. Steps 1, 2, 10 and 100 send more, to
compare the replicas; they are not counted.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import distributed as dist
from torch.multiprocessing.spawn import spawn

import polyak
from contestants import MOMENTUM, NESTEROV, Parameters, fill
from timing import Step, by_turns, headline, parser

Groups = list[dict[str, Any]]


def torchs(cls: Callable[..., torch.optim.Optimizer], **options: Any) -> Callable[[Groups], Step]:
    return lambda groups: cls(groups, lr=1e-3, **options).step


def alig(**options: Any) -> Callable[[Groups], Step]:
    def make(groups: Groups) -> Step:
        optimizer = polyak.ALIG(groups, lr=1e-3, **MOMENTUM, **options)
        return partial(optimizer.step, loss=torch.ones((), device=groups[0]["params"][0].device))

    return make


SGD, ADAMW = partial(torchs, torch.optim.SGD, **NESTEROV), partial(torchs, torch.optim.AdamW)
OPTIMIZERS = {
    "SGD, fused": SGD(fused=True),
    "AdamW, fused": ADAMW(fused=True),
    "ALI-G": alig(),
    "ALI-G, fused": alig(fused=True),
}
SPREAD = {"SGD": SGD(), "AdamW": ADAMW(), "ALI-G": alig()}
COUNTS = {"tensors": (10, 100, 1000, 10_000), "groups": (1, 3, 10, 30, 100), "processes": (1, 2, 4, 8)}
SIZES = (1e4, 1e5, 1e6, 3e6, 1e7, 3e7, 1e8, 3e8)
HOWS = ("DDP", "FSDP2")
LINEAR_FROM = 1e6  # below, the calls of a step take longer than its reads
Point = tuple[int, list[float]]


def equal(count: int, size: int, device: str) -> Parameters:
    """Return `count` tensors of `size` numbers, with gradients."""
    own = [torch.nn.Parameter(torch.empty(size, device=device)) for _ in range(count)]
    for p in own:
        p.grad = torch.empty_like(p)
    fill(own)
    return own


def layouts(axis: str, largest: float, device: str) -> Iterator[tuple[int, Parameters, int]]:
    """Return the points of an axis: its number, the parameters, and in how many groups they are."""
    if axis == "parameters":
        for size in SIZES:
            if size <= largest:
                yield int(size), equal(10, int(size) // 10, device), 1
    elif axis == "tensors":
        for count in COUNTS[axis]:
            yield count, equal(count, 100, device), 1
    else:
        for count in COUNTS[axis]:
            yield count, equal(300, 3000, device), count


def grouped(own: Parameters, groups: int) -> Groups:
    return [{"params": own[i::groups]} for i in range(groups)]


def measure(axis: str, chosen: argparse.Namespace) -> tuple[Table, list[str]]:
    """Time all optimizers along an axis; return the table and the sentences below it."""
    points: dict[str, list[Point]] = {name: [] for name in OPTIMIZERS}
    for number, own, groups in layouts(axis, chosen.largest, chosen.device):
        steps = [make(grouped(own, groups)) for make in OPTIMIZERS.values()]
        for name, times in zip(points, by_turns(steps, chosen.rounds, chosen.device), strict=True):
            points[name].append((number, times))
    return table(axis, points), [fit(axis, name, found) for name, found in points.items()]


def table(axis: str, points: dict[str, list[Point]]) -> Table:
    """Return a line per point, a column per optimizer: microseconds, and the ratio to SGD."""
    made = Table(axis, title=f"a step in µs, and its ratio to {next(iter(points))}")
    for name in points:
        made.add_column(name, justify="right")
    base, *_ = points.values()
    for i, (number, yardstick) in enumerate(base):
        cells = []
        for found in points.values():
            ratio = statistics.median(a / b for a, b in zip(found[i][1], yardstick, strict=True))
            cells.append(f"{statistics.median(found[i][1]) * 1e6:,.0f} ({ratio:.2f})")
        made.add_row(f"{number:,}", *cells)
    return made


def fit(axis: str, name: str, found: list[Point]) -> str:
    """Return the straight line through the medians as a sentence."""
    kept = [point for point in found if axis != "parameters" or point[0] >= LINEAR_FROM]
    if len(kept) < 3:
        return f"{name}: too few points for a line"
    numbers, times = [float(number) for number, _ in kept], [statistics.median(each) for _, each in kept]
    slope, start = statistics.linear_regression(numbers, times)
    r2 = statistics.correlation(numbers, times) ** 2
    unit = axis.removesuffix("s")
    each = f"{slope * 1e9:.3f} ns" if axis == "parameters" else f"{slope * 1e6:.3f} µs"
    return f"{name}: {each} per {unit}, {start * 1e6:.0f} µs besides, R² = {r2:.4f}, {len(kept)} points"


def network() -> torch.nn.Module:
    """Return a network of a million parameters in twelve tensors."""
    torch.manual_seed(0)
    layers = [torch.nn.Linear(420, 420) for _ in range(6)]
    return torch.nn.Sequential(*(each for layer in layers for each in (layer, torch.nn.ReLU())))


def spread(model: Any, how: str) -> Any:
    if how == "DDP":
        return torch.nn.parallel.DistributedDataParallel(model)
    from torch.distributed.fsdp import fully_shard

    for layer in model:
        if isinstance(layer, torch.nn.Linear):
            fully_shard(layer)
    return fully_shard(model)


def sent(step: Step) -> tuple[int, int]:
    """Return how many collectives one step calls, and the bytes that this process puts into them."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as found:
        step()
    calls = [event for event in found.events() or () if event.name.startswith("gloo:")]
    numbers = sum(torch.Size(shape).numel() for event in calls for shape in event.input_shapes if shape is not None)
    return len(calls), 4 * numbers


def replica(rank: int, world: int, rounds: int, folder: str) -> None:
    """On one process: time the step of each optimizer; rank 0 stores the cells of its lines."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=world)
    lines = [[str(world), how, str(groups), *replicated(how, groups, rounds)] for how in HOWS for groups in (1, 12)]
    if rank == 0:
        torch.save(lines, f"{folder}/lines.pt")
    dist.barrier()
    dist.destroy_process_group()


def replicated(how: str, groups: int, rounds: int) -> list[str]:
    """Return the median times of this process, and what ALI-G's step sends."""
    model = spread(network(), how)
    model(torch.ones(8, 420)).square().mean().backward()
    steps = [make(grouped(list(model.parameters()), groups)) for make in SPREAD.values()]
    times = by_turns(steps, rounds, "cpu")
    return [
        *(f"{statistics.median(each) * 1e6:,.0f}" for each in times),
        *map(str, min(sent(steps[-1]), sent(steps[-1]))),
    ]


def processes(chosen: argparse.Namespace) -> Table:
    """Time a step on 1 to 8 processes."""
    made = Table("processes", "by", "groups", title="a step of a million parameters in µs, on rank 0; what ALI-G sends")
    for name in (*SPREAD, "collectives", "bytes"):
        made.add_column(name, justify="right")
    for world in COUNTS["processes"]:
        with tempfile.TemporaryDirectory() as folder:
            spawn(replica, (world, chosen.rounds, folder), nprocs=world)
            for line in torch.load(Path(folder, "lines.pt"), weights_only=True):
                made.add_row(*line)
    return made


def main() -> None:
    """Measure the chosen axes."""
    options = parser(__doc__)
    axes = ["parameters", *COUNTS]
    options.add_argument("--axis", action="append", choices=axes, help="default: all of them")
    options.add_argument("--largest", type=float, default=3e8, help="the most parameters; 3e8 take 11 GB")
    chosen = options.parse_args()
    console = Console(record=True, width=120)
    console.print(headline(chosen), highlight=False)
    for axis in chosen.axis or axes:
        if axis == "processes":
            console.print(processes(chosen))
            continue
        found, sentences = measure(axis, chosen)
        console.print(found)
        for sentence in sentences:
            console.print(sentence, highlight=False)
    if chosen.out is not None:
        chosen.out.write_text(console.export_text())


if __name__ == "__main__":
    main()
