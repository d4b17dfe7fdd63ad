"""Time a step of each optimizer against torch's fused SGD, by turns in one process, and print the ratios.

    python benchmarks/step_time.py [--model resnet34] [--rounds 15] [--threads 2] [--device cpu] [--out FILE]

All optimizers move the same parameters, so that no ratio depends on where in memory a model happens to lie. A ratio is
the median over rounds of this step's time over fused SGD's in the same round; the quartiles stand behind it. "/ ours"
is the same for a rival over our fused step (with an active ball if the rival has one), which takes part in the rival's
rounds. MB is what a step must read and write at least (docs/cost.md), GB/s how fast that was, beside the speed of a
copy, and MiB the largest memory a step needs for itself. On a GPU, kernels and waits of the host are counted as well.
AliG of pytorch_optimizer, optax's Polyak SGD and momo-opt take part where installed. The steps in Adam's norm are
compared with torch's fused AdamW instead of SGD: the column "over" says with which. `--only TEXT` chooses rows.
"""

import gc
import itertools
import statistics

import torch
from rich.console import Console
from rich.table import Table
from torch._C._autograd import DeviceType
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile, record_function

from contestants import ADAM, CONTESTANTS, YARDSTICK, Contestant, Parameters, fill, parameters
from models import SHAPES
from timing import Step, by_turns, headline, parser, seconds

COLUMNS = ("over", "ratio", "quartiles", "/ ours", "MB", "GB/s", "MiB")


def peak(step: Step) -> float:
    """Return the most memory on the CPU, in MiB, that a step holds beyond what was there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        step()
    nodes, sizes = found.profiler.kineto_results.experimental_event_tree(), []
    while nodes:
        node = nodes.pop()
        nodes += node.children
        sizes += [(node.start_time_ns, node.extra_fields.alloc_size)] if node.tag == _EventType.Allocation else []
    return max(itertools.accumulate(size for _, size in sorted(sizes)), default=0) / 2**20


def counts(step: Step, device: str) -> list[str]:
    """Return the largest need of memory of one step in MiB, on a GPU also its kernels and the waits of the host."""
    if device == "cpu":
        return [f"{peak(step):.2f}"]
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        with record_function("one step"):
            step()
        most = torch.cuda.max_memory_allocated() - before
    events, (cpu, cuda) = found.events(), (DeviceType.CPU, DeviceType.CUDA)
    kernels = sum(event.device_type == cuda and not event.is_user_annotation for event in events)
    (time,) = [event.time_range for event in events if event.name == "one step" and event.device_type == cpu]
    waits = [event for event in events if "Synchronize" in event.name]  # the profiler waits, too, but later
    during = sum(time.start <= event.time_range.start <= time.end for event in waits)
    return [f"{most / 2**20:.2f}", str(kernels), str(during)]


def copy_speed(own: Parameters, device: str) -> float:
    """Return the bytes per second of a copy as large as the model, read and write counted."""
    source = torch.ones(sum(p.numel() for p in own), device=device)
    target = torch.empty_like(source)
    taken = statistics.median(seconds(lambda: target.copy_(source), device) for _ in range(7))
    return 2 * source.nbytes / taken


def row(contestant: Contestant, own: Parameters, rounds: int, device: str) -> tuple[float, list[str]]:
    """Return the median time of the yardstick in a contestant's rounds, and the contestant's row of the table."""
    gc.collect()
    fill(own)  # torch's foreach SGD changes the gradients
    taking_part = [
        ADAM if contestant.of_adam else YARDSTICK,
        contestant,
        *([CONTESTANTS[contestant.rival_of]] if contestant.rival_of else []),
    ]
    steps = [each.make(own) for each in taking_part]
    base, taken, *ours = by_turns(steps, rounds, device)
    low, middle, high = statistics.quantiles(ratios(taken, base), n=4)
    over_ours = [f"{statistics.median(ratios(taken, column)):.2f}" for column in ours] or [""]
    moved = contestant.passes * sum(p.nbytes for p in own)
    speed = f"{moved / 1e9 / statistics.median(taken):.1f}"
    cells = [
        "AdamW" if contestant.of_adam else "SGD",
        f"{middle:.2f}",
        f"{low:.2f} to {high:.2f}",
        *over_ours,
        f"{moved / 1e6:.1f}",
        speed,
    ]
    return statistics.median(base), [*cells, *counts(steps[1], device)]


def ratios(ones: list[float], others: list[float]) -> list[float]:
    return [one / other for one, other in zip(ones, others, strict=True)]


def measure(model: str, rounds: int, device: str, only: list[str]) -> Table:
    """Time every contestant against the yardstick."""
    own = parameters(model, device)
    size = sum(p.nbytes for p in own)
    chosen = {name: each for name, each in CONTESTANTS.items() if not only or any(text in name for text in only)}
    found = {name: row(contestant, own, rounds, device) for name, contestant in chosen.items()}
    of_adam = all(each.of_adam for each in chosen.values())  # whose yardstick is another one
    base = statistics.median(taken for name, (taken, _) in found.items() if chosen[name].of_adam == of_adam)
    speed = (ADAM if of_adam else YARDSTICK).passes * size / base / 1e9
    against = "AdamW" if of_adam else "SGD"
    title = f"{model}: {size / 4e6:.2f} million numbers; torch {against}, fused: {base * 1e6:.0f} µs, "
    title += f"{speed:.1f} GB/s; a copy: {copy_speed(own, device) / 1e9:.1f} GB/s"
    table = Table("optimizer", title=title)
    for heading in (*COLUMNS, *(("kernels", "waits") if device != "cpu" else ())):
        table.add_column(heading, justify="right")
    for name, (_, cells) in found.items():
        table.add_row(name, *cells)
    return table


def main() -> None:
    """Time the chosen models."""
    options = parser(__doc__)
    options.add_argument("--model", action="append", choices=list(SHAPES), help="default: all of them")
    options.add_argument("--only", action="append", default=[], metavar="TEXT", help="rows whose names hold it")
    chosen = options.parse_args()
    if chosen.only and not any(text in name for text in chosen.only for name in CONTESTANTS):
        options.error(f"--only: no row's name holds {' or '.join(map(repr, chosen.only))}")
    console = Console(record=True, width=120)
    console.print(f"{headline(chosen)} (20 times as many for the mlp)", highlight=False)
    for model in chosen.model or SHAPES:
        console.print(measure(model, chosen.rounds * (20 if model == "mlp" else 1), chosen.device, chosen.only))
    if chosen.out is not None:
        chosen.out.write_text(console.export_text())


if __name__ == "__main__":
    main()
