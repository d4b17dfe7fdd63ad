"""The verbs of the command line and their flags.

Nothing here imports torch before a verb needs it, so that `polyak --help` answers at once.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro
from rich.console import Console
from tyro.constructors import PrimitiveConstructorSpec

from polyak_lab.cli import inspect
from polyak_lab.config import run as config
from polyak_lab.console import counted, say
from polyak_lab.errors import LabError
from polyak_lab.files import is_standard_stream

T = TypeVar("T")


def _one_or_more(kind: Callable[[str], T]) -> PrimitiveConstructorSpec[tuple[T, ...]]:
    """Describe a flag with one or more values; tyro's own takes a flag without any as one that was left out."""

    def read(texts: list[str]) -> tuple[T, ...]:
        if not texts:
            raise ValueError("write one or more values after it, or leave it out")
        return tuple(map(kind, texts))

    name = kind.__name__.upper()
    return PrimitiveConstructorSpec(
        nargs="*",
        metavar=f"{name} [{name} ...]",
        instance_from_str=read,
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda values: [*map(str, values)],
    )


Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]


@dataclass(frozen=True)
class Train:
    """Train one run. Run the same command again to resume a run that was stopped."""

    data: config.Data
    model: config.Model
    optimizer: config.Optimizer = field(default_factory=lambda: config.Optimizer(tyro.MISSING, options=tyro.MISSING))
    schedule: config.Schedule = field(default_factory=config.Schedule)
    training: config.Training = field(default_factory=lambda: config.Training(epochs=10))
    objective: config.Objective = field(default_factory=config.Objective)
    out: Path | None = None
    """The folder of the run. Default: a name made of the run's content, below runs/."""
    track: Tracker | None = None
    """Also send the metrics of every epoch to a tracker; its extra has to be installed."""

    def execute(self, console: Console) -> None:
        """Train."""
        from polyak_lab.cli.train import train_one

        run = config.Run(self.data, self.model, self.optimizer, self.training, self.schedule, self.objective)
        train_one(run, self.out, console, self.track)


@dataclass(frozen=True)
class RunRecipe:
    """Train the rows of a recipe that are not finished yet, and print their table."""

    recipe: tyro.conf.Positional[Path]
    """A TOML file: recipes/demo.toml."""
    row: Annotated[tuple[str, ...], _one_or_more(str)] = ()
    """Only these rows."""
    seeds: Annotated[tuple[int, ...], _one_or_more(int)] = ()
    """Only these seeds. Default: those of the recipe."""
    out: Path | None = None
    """Where the run folders go. Default: runs/ and the recipe's name."""
    device: str | None = None
    """auto, cpu, cuda, ... Default: what the recipe says."""
    jobs: int = 1
    """Runs side by side, each in a process of its own."""
    report: bool = False
    """Also write report.html, one page with the table and the curves."""
    smoke: bool = False
    """The small version that the recipe declares under [smoke]; without one, two steps of each run."""
    track: Tracker | None = None
    """Also send the metrics of every epoch to a tracker; its extra has to be installed."""

    def execute(self, console: Console) -> None:
        """Train and show."""
        from polyak_lab.cli.train import run_recipe

        run_recipe(
            self.recipe,
            self.row,
            self.seeds,
            self.out,
            console,
            device=self.device,
            count=self.jobs,
            smoke=self.smoke,
            with_report=self.report,
            track=self.track,
        )


@dataclass(frozen=True)
class SweepRecipe:
    """Search the options of a recipe's row as its [sweep] declares. Run the same command again to resume."""

    recipe: tyro.conf.Positional[Path]
    """A TOML file with a [sweep]."""
    out: Path | None = None
    """Where the study and its trials go. Default: runs/ and the recipe's name, and -sweep."""
    ray: str | None = None
    """Try the trials on a Ray cluster: auto, or HOST:PORT of its head. Default: here, one after the other."""

    def execute(self, console: Console) -> None:
        """Search."""
        from polyak_lab.sweep.search import run_sweep

        run_sweep(self.recipe, self.out, console, self._executor())

    def _executor(self) -> Any:
        if self.ray is None:
            return None
        from polyak_lab.sweep.ray_cluster import cluster

        return cluster(self.ray)


@dataclass(frozen=True)
class Table:
    """Print the table of the finished runs in folders: mean ± standard deviation over the seeds."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = (Path("runs"),)
    """Folders that hold runs, at any depth, such as runs/demo; or files of packed runs."""
    format: Literal["terminal", "markdown", "latex", "csv", "csv-seeds"] = "terminal"
    """How to write it; csv holds numbers (mean, standard deviation, n), csv-seeds a line for every run."""
    against: str | None = None
    """Also print the difference of every row to this one, seed by seed, with its 95 % confidence interval."""
    report: Path | None = None
    """Also write the page of `polyak report` to this HTML file."""
    plot_lr: Path | None = None
    """Also draw the accuracy against lr, a line per method, into this PNG or SVG file."""
    plot_loss: Path | None = None
    """Also draw the training loss over the epochs, a line per row, into this PNG or SVG file."""

    def execute(self, console: Console) -> None:
        """Read and print."""
        inspect.check_page("--report", self.report)
        inspect.check_figures(plot_lr=self.plot_lr, plot_loss=self.plot_loss)
        problems: list[LabError] = []
        rows = inspect.read_rows(self.runs, problems)
        inspect.print_table(console, rows, self.format, self.against)
        if self.report is not None:
            inspect.write_page(self.report, rows, self.runs, problems)
        if self.plot_lr is not None or self.plot_loss is not None:
            inspect.write_figures(rows, plot_lr=self.plot_lr, plot_loss=self.plot_loss)


@dataclass(frozen=True)
class Report:
    """Write one HTML page about runs: tables, curves with values on hover, and their configurations."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = (Path("runs"),)
    """Folders that hold runs, at any depth, such as runs/demo; or files of packed runs."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("report.html")
    """The HTML file; it needs no other file and no network."""

    def execute(self, console: Console) -> None:
        """Read and write."""
        inspect.check_page("--out", self.out)
        problems: list[LabError] = []
        rows = inspect.read_rows(self.runs, problems)
        inspect.write_page(self.out, rows, self.runs, problems)
        if not is_standard_stream(self.out):
            found = counted(sum(len(row.runs) for row in rows), "run")
            say(console, f"{self.out}: {counted(len(rows), 'row')}, {found}")


@dataclass(frozen=True)
class Compare:
    """Compare two rows: Welch's t-test, the test of the differences seed by seed, and what differs in the options."""

    first: tyro.conf.Positional[Path]
    """The folder of one row, with its runs below it, such as runs/demo/alig."""
    second: tyro.conf.Positional[Path]
    """The folder of another one. Differences are first - second."""
    metric: str | None = None
    """A number of the last epoch in metrics.jsonl, such as train_loss. Default: the main score of the table."""

    def execute(self, console: Console) -> None:
        """Compare."""
        from polyak_lab.report.comparison import compare

        compare(self.first, self.second, self.metric, console)


@dataclass(frozen=True)
class Pack:
    """Write finished runs into one text file, which table, report and compare read as they read the folders."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = (Path("runs"),)
    """Folders that hold runs, at any depth, such as runs/demo; or files of packed runs."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = field(kw_only=True)
    """The folder that runs.jsonl is written to, such as results/demo; or a file whose name ends in .jsonl."""
    overwrite: bool = False
    """Replace a file that holds other runs."""

    def execute(self, console: Console) -> None:
        """Read and write."""
        from polyak_lab.cli.pack import pack

        pack(self.runs, self.out, self.overwrite, console)


@dataclass(frozen=True)
class Watch:
    """Follow a run, or all runs of a folder, in the terminal until they are finished. Ctrl-C leaves the runs alone."""

    runs: tyro.conf.Positional[Path] = Path("runs")
    """The folder of a run, or one that holds runs at any depth."""
    wait: bool = False
    """Wait for a run to begin, where there is none yet."""
    interval: float = 1.0
    """Seconds between two looks at the folder."""

    def execute(self, console: Console) -> None:
        """Watch."""
        from polyak_lab.cli.watch import watch

        watch(self.runs, self.wait, self.interval, console)


@dataclass(frozen=True)
class List:
    """List the data sets, and where each was found."""

    def execute(self, console: Console) -> None:
        """Print the list."""
        inspect.print_data(console)


@dataclass(frozen=True)
class Fetch:
    """Download a data set and check what came."""

    name: tyro.conf.Positional[str]
    """Its name."""

    def execute(self, console: Console) -> None:
        """Fetch."""
        inspect.fetch_data(self.name, console)


@dataclass(frozen=True)
class Check:
    """Check that a data set is what it says."""

    name: tyro.conf.Positional[str]
    """Its name."""

    def execute(self, console: Console) -> None:
        """Check."""
        from polyak_lab import data

        say(console, data.check(self.name))


@dataclass(frozen=True)
class Data:
    """Data sets: list, fetch, check. They live in $POLYAK_DATA, or in ~/.cache/polyak/data."""

    verb: (
        Annotated[List, tyro.conf.subcommand("list")]
        | Annotated[Fetch, tyro.conf.subcommand("fetch")]
        | Annotated[Check, tyro.conf.subcommand("check")]
    )

    def execute(self, console: Console) -> None:
        """Do what the verb says."""
        self.verb.execute(console)


Verb = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[RunRecipe, tyro.conf.subcommand("run")]
    | Annotated[SweepRecipe, tyro.conf.subcommand("sweep")]
    | Annotated[Table, tyro.conf.subcommand("table")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Compare, tyro.conf.subcommand("compare")]
    | Annotated[Pack, tyro.conf.subcommand("pack")]
    | Annotated[Watch, tyro.conf.subcommand("watch")]
    | Annotated[Data, tyro.conf.subcommand("data")]
)
