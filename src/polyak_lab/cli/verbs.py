"""The verbs of the command line and their flags: `polyak train`, `run`, `sweep`, `table` and `data`.

Nothing here imports torch before a verb needs it, so that `polyak --help` answers at once.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

from polyak_lab.cli import inspect as arguments
from polyak_lab.console import say


@dataclass(frozen=True)
class Train:
    """Train one run. The same command goes on with a run that was stopped."""

    data: str
    """Data set; `polyak data list` names them."""
    model: str
    """Network: mlp, logistic, resnet8, resnet20, resnet34, gpt-small, ..."""
    optimizer: str
    """alig, sps, smooth-sps, sgd, adam or adamw."""
    lr: float | None = None
    """Learning rate; for methods that read the loss, the cap on the step size. Default: the method's own."""
    momentum: float | None = None
    """Momentum. Default: the method's own."""
    l2_ball: Annotated[float | None, tyro.conf.arg(aliases=["--radius"])] = None
    """Radius of the l2 ball the weights stay in."""
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Any other keyword argument of the optimizer, as KEY=VALUE: --set c=0.2 --set weight_decay=5e-4."""
    schedule: Literal["constant", "cosine", "step"] = "constant"
    """How lr moves: constant, cosine to zero, or by steps."""
    milestones: tuple[int, ...] = ()
    """Epochs after which the step schedule changes lr."""
    factor: float = 0.1
    """What the step schedule multiplies lr by."""
    warmup_steps: int = 0
    """Steps over which lr rises at the start, with any schedule."""
    epochs: int = 10
    """Passes over the training data."""
    batch_size: int = 128
    """Samples per step; the last batch of an epoch may be smaller."""
    seed: int = 0
    """Seed of the weights, and of the order of the batches."""
    shuffle_seed: int | None = None
    """Another seed for the order of the batches and the augmentation."""
    augment: bool = False
    """Crop (padding 4) and flip the training images at random."""
    eval_protocol: Literal["clean", "sps-augmented-validation"] = "clean"
    """sps-augmented-validation also scores on cropped and flipped test images, as the SPS authors' runner does."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""
    threads: int | None = None
    """CPU threads. Default: torch's choice; 1 is faster for small models on a busy machine."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: autocast the network; weights, losses and steps stay in float32."""
    channels_last: bool = False
    """Keep the channels of images innermost: faster convolutions."""
    compile: bool = False
    """Compile the network with torch.compile."""
    cuda_graph: bool = False
    """Replay the whole step as one CUDA graph: faster where Python is what a small network waits for."""
    clip_norm: float | None = None
    """Clip the norm of the gradient; methods that read the loss are given the norm from before."""
    root: str | None = None
    """The file of --data text."""
    context: int | None = None
    """Characters in a sequence of text. Default: 128."""
    out: Path | None = None
    """The folder of the run. Default: a name made of the run's content, below runs/."""

    def execute(self, console: Console) -> None:
        """Train."""
        from polyak_lab.cli.train import train_one

        train_one(self, self.out, console)


@dataclass(frozen=True)
class RunRecipe:
    """Train the rows of a recipe that are not finished yet, and print their table."""

    recipe: tyro.conf.Positional[Path]
    """A TOML file: recipes/demo.toml."""
    row: tuple[str, ...] = ()
    """Only these rows."""
    seeds: tuple[int, ...] = ()
    """Only these seeds. Default: those of the recipe."""
    out: Path | None = None
    """Where the run folders go. Default: runs/ and the recipe's name."""
    device: str | None = None
    """auto, cpu, cuda, ... Default: what the recipe says."""
    report: bool = False
    """Also write report.html, one page with the table and the curves."""
    smoke: bool = False
    """The small version that the recipe declares under [smoke]; without one, two steps of each run."""

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
            smoke=self.smoke,
            with_report=self.report,
        )


@dataclass(frozen=True)
class SweepRecipe:
    """Search the options of a recipe's row as its [sweep] declares; the same command goes on with it."""

    recipe: tyro.conf.Positional[Path]
    """A TOML file with a [sweep]."""
    out: Path | None = None
    """Where the study and its trials go. Default: runs/ and the recipe's name."""
    ray: str | None = None
    """Try the trials on a Ray cluster: auto, or HOST:PORT of its head. Default: here, one after the other."""

    def execute(self, console: Console) -> None:
        """Search."""
        from polyak_lab.sweep.search import run_sweep

        run_sweep(self.recipe, self.out, console, self._workers())

    def _workers(self) -> Any:
        if self.ray is None:
            return None
        from polyak_lab.sweep.ray_cluster import cluster

        return cluster(self.ray)


@dataclass(frozen=True)
class Table:
    """Print the table of the finished runs in folders: mean ± standard deviation over the seeds."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders that hold runs, at any depth: runs/demo."""
    format: Literal["terminal", "markdown", "csv"] = "terminal"
    """How to write it."""
    report: Path | None = None
    """Also write a page with the table and the curves to this file."""
    plot_lr: Path | None = None
    """Also draw the accuracy against lr, a line per method, into this PNG or SVG file."""
    plot_loss: Path | None = None
    """Also draw the training loss over the epochs, a line per row, into this PNG or SVG file."""

    def execute(self, console: Console) -> None:
        """Read and print."""
        arguments.print_table(self, console)


@dataclass(frozen=True)
class List:
    """List the data sets, and where each was found."""

    def execute(self, console: Console) -> None:
        """Print the list."""
        arguments.print_data(console)


@dataclass(frozen=True)
class Fetch:
    """Download a data set and check what came."""

    name: tyro.conf.Positional[str]
    """Its name."""

    def execute(self, console: Console) -> None:
        """Fetch."""
        arguments.fetch_data(self.name, console)


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
    | Annotated[Data, tyro.conf.subcommand("data")]
)
