"""From arguments to what they mean, for the verbs of the command line that need little or no torch."""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.table import Table

from polyak_lab import config
from polyak_lab.errors import LabError
from polyak_lab.terminal import cell, say, show, warn


class TrainArguments(Protocol):
    """The flags of `polyak train`."""

    data: str
    model: str
    optimizer: str
    lr: float | None
    momentum: float | None
    l2_ball: float | None
    set: tuple[str, ...]
    schedule: str
    milestones: tuple[int, ...]
    factor: float
    warmup_steps: int
    epochs: int
    batch_size: int
    seed: int
    shuffle_seed: int | None
    augment: bool
    eval_protocol: str
    device: str
    threads: int | None
    precision: str
    channels_last: bool
    compile: bool
    cuda_graph: bool
    clip_norm: float | None
    root: str | None
    context: int | None


def as_run(flags: TrainArguments) -> config.Run:
    """Make the run that the flags ask for."""
    named = {"lr": flags.lr, "momentum": flags.momentum}
    options = {key: value for key, value in named.items() if value is not None} | _options(flags.set)
    return config.Run(
        config.Data(flags.data, flags.augment, root=flags.root, context=flags.context),
        config.Model(flags.model),
        config.Optimizer(flags.optimizer, flags.l2_ball, options),
        config.Training(
            epochs=flags.epochs,
            batch_size=flags.batch_size,
            seed=flags.seed,
            shuffle_seed=flags.shuffle_seed,
            device=flags.device,
            eval_protocol=flags.eval_protocol,
            threads=flags.threads,
            precision=flags.precision,
            channels_last=flags.channels_last,
            compile=flags.compile,
            cuda_graph=flags.cuda_graph,
            clip_norm=flags.clip_norm,
        ),
        config.Schedule(flags.schedule, flags.milestones, flags.factor, flags.warmup_steps),
    )


def _options(pairs: Sequence[str]) -> dict[str, Any]:
    """Read KEY=VALUE as a recipe would."""
    options: dict[str, Any] = {}
    for pair in pairs:
        try:
            options |= tomllib.loads(pair)
        except tomllib.TOMLDecodeError as error:
            raise LabError(f"--set {pair}: write KEY=VALUE, such as c=0.2 or nesterov=true.") from error
    return options


class TableArguments(Protocol):
    """The flags of `polyak table`."""

    runs: tuple[Path, ...]
    format: str
    report: Path | None
    plot_lr: Path | None
    plot_loss: Path | None


def print_table(flags: TableArguments, console: Console) -> None:
    """Print the table of run folders, and write the page and the pictures if files for them are named."""
    from polyak_lab import stored, table

    rows = table.groups(stored.find(flags.runs, on_damage=warn))
    if flags.format == "terminal":
        show(console, table.as_rich(rows))
    else:
        say(console, {"markdown": table.as_markdown, "csv": table.as_csv}[flags.format](rows))
    if flags.report is not None:
        from polyak_lab import report

        report.write(flags.report, rows, "Runs in " + ", ".join(map(str, flags.runs)), "")
    if flags.plot_lr is not None or flags.plot_loss is not None:
        from polyak_lab import pictures

        drawings = ((flags.plot_lr, pictures.write_sensitivity), (flags.plot_loss, pictures.write_losses))
        for path, write in drawings:
            if path is not None:
                write(path, rows)


def print_data(console: Console) -> None:
    """Print the data sets."""
    from polyak_lab import data

    table = Table("name", "kind", "where", "how to get it", header_style="bold")
    for row in data.describe():
        table.add_row(*map(cell, row))
    show(console, table)


def fetch_data(name: str, console: Console) -> None:
    """Fetch a data set, with a bar for every file on a terminal."""
    from polyak_lab import data
    from polyak_lab.progress import downloading

    with downloading(console, name) as note:
        place = data.fetch(name, on_progress=note)
    say(console, f"{name} is in {place}")
