"""Experiment trackers: TensorBoard, Weights & Biases, MLflow and Trackio get the metrics of every epoch.

`metrics.jsonl` is always written and is what counts. A tracker that is not installed, or fails, is reported in one
sentence, and training goes on without it.
"""

import contextlib
import importlib
import io
import math
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, final

from polyak_lab.config.run import flatten
from polyak_lab.console import warn
from polyak_lab.errors import LabError, typed_line
from polyak_lab.processes import group
from polyak_lab.progress import Numbers, Progress, Readable
from polyak_lab.runs import documents
from polyak_lab.runs.folder import RunFolder

PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "15"}
"""MLflow's own values try a server that cannot be reached for minutes; what the user sets holds."""


class Tracker(Protocol):
    """Where the numbers of a run go."""

    def log(self, numbers: Mapping[str, float], epoch: int) -> None:
        """Store the numbers of an epoch."""
        ...

    def close(self) -> None:
        """End the run, and wait until everything is stored."""
        ...


class _TensorBoard:
    """Event files in the folder `tensorboard` of the run."""

    def __init__(self, folder: RunFolder) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder.path / "tensorboard"), purge_step=1)  # the epochs before are sent again

    def log(self, numbers: Mapping[str, float], epoch: int) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _WandB:
    """A run of Weights & Biases; WANDB_PROJECT, WANDB_MODE and the others of its variables hold."""

    def __init__(self, folder: RunFolder) -> None:
        import wandb

        self._run = wandb.init(
            project=_project(folder),
            name=_title(folder),
            id=folder.hash,
            config=folder.config,
            dir=folder.path,
            resume="allow",
            # Runs side by side are logged by one process, which may have others open.
            settings=wandb.Settings(init_timeout=30, console="off", silent=True, reinit="create_new"),
        )

    def log(self, numbers: Mapping[str, float], epoch: int) -> None:
        self._run.log(dict(numbers), step=epoch)

    def close(self) -> None:
        self._run.finish()


class _MLflow:
    """A run on the server, or in the files, that MLFLOW_TRACKING_URI names."""

    def __init__(self, folder: RunFolder) -> None:
        for name, value in PATIENCE.items():
            os.environ.setdefault(name, value)
        import mlflow

        self._client = mlflow.MlflowClient()
        name = _project(folder)
        found = self._client.get_experiment_by_name(name)
        experiment = self._client.create_experiment(name) if found is None else found.experiment_id
        same = self._client.search_runs([experiment], f"tags.polyak_hash = '{folder.hash}'", max_results=1)
        if same:
            self._id = same[0].info.run_id
        else:
            tags = {"polyak_hash": folder.hash}
            self._id = self._client.create_run(experiment, run_name=_title(folder), tags=tags).info.run_id
            for key, value in flatten(folder.config):
                self._client.log_param(self._id, key, value)
        self._known = (
            {entry.step for entry in self._client.get_metric_history(self._id, "train_loss")} if same else set()
        )

    def log(self, numbers: Mapping[str, float], epoch: int) -> None:
        if epoch not in self._known:
            for name, value in numbers.items():
                self._client.log_metric(self._id, name, value, step=epoch)

    def close(self) -> None:
        self._client.set_terminated(self._id)


class _Trackio:
    """A run of Trackio, on this machine unless its variables name a Space."""

    def __init__(self, folder: RunFolder) -> None:
        import trackio

        # A run is found again by its name alone, and several may be open: the module's functions use the last one.
        name = f"{_title(folder)} [{folder.hash[:6]}]"
        with contextlib.redirect_stdout(io.StringIO()):  # it would write into the progress bars
            self._run = trackio.init(project=_project(folder), name=name, config=folder.config, resume="allow")

    def log(self, numbers: Mapping[str, float], epoch: int) -> None:
        self._run.log(dict(numbers), step=epoch)

    def close(self) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            self._run.finish()


class Kind(NamedTuple):
    """A tracker: its name in sentences, what it imports, how it is made, and whether it takes an epoch twice."""

    title: str
    module: str
    make: Callable[[RunFolder], Tracker]
    again: bool


KINDS: dict[str, Kind] = {
    "tensorboard": Kind("TensorBoard", "tensorboard", _TensorBoard, True),
    "wandb": Kind("Weights & Biases", "wandb", _WandB, False),
    "mlflow": Kind("MLflow", "mlflow", _MLflow, True),
    "trackio": Kind("Trackio", "trackio", _Trackio, False),
}


class Tracking:
    """The tracker of a command; after a failure it is off for the rest of it."""

    def __init__(self, name: str) -> None:
        self.kind, self.is_on = KINDS[name], True
        try:
            importlib.import_module(self.kind.module)
        except (Exception, SystemExit) as error:
            missing = isinstance(error, ModuleNotFoundError) and error.name == self.kind.module
            self.stop("is not installed" if missing else f"cannot be imported ({typed_line(error)})", name)

    def stop(self, why: str, extra: str = "") -> None:
        """Say in one sentence that there is no tracker, and use none from now on."""
        self.is_on = False
        install = f": pip install 'polyak[{extra}]'" if extra else ""
        warn(LabError(f"{self.kind.title} {why}, so training goes on with metrics.jsonl alone{install}."))

    def follow(self, shown: Progress, folder: RunFolder) -> Progress:
        """Return a progress that also tracks the run of a folder."""
        return Tracked(self, shown, folder) if self.is_on and group.rank() == 0 else shown


@final
class Tracked(Progress):
    """Shows the progress of a run, and sends the metrics of its epochs to a tracker."""

    def __init__(self, tracking: Tracking, shown: Progress, folder: RunFolder) -> None:
        super().__init__(shown.console, shown.each_epoch)
        self.name, self._shown, self._folder, self._tracking = shown.name, shown, folder, tracking
        self._tracker: Tracker | None = None

    def run_started(self, epochs: int, steps: int, done: int) -> None:
        """Open the tracker, and send it the epochs done before."""
        self._shown.run_started(epochs, steps, done)
        self._attempt(lambda: self._open(done))

    def step(self, epoch: int, meter: Readable, count: int = 1) -> None:
        """Show it."""
        self._shown.step(epoch, meter, count)

    def epoch_done(self, record: Numbers, timing: Numbers) -> None:
        """Show it, and send it to the tracker."""
        self._shown.epoch_done(record, timing)
        if (tracker := self._tracker) is not None:
            self._attempt(lambda: tracker.log(numbers({**record, **_speed(timing)}), record["epoch"]))

    def run_finished(self, record: Numbers, seconds: float) -> None:
        """Show it, and close the tracker."""
        self._shown.run_finished(record, seconds)
        self._close()

    def run_failed(self) -> None:
        """Show it, and close the tracker."""
        self._shown.run_failed()
        self._close()

    def _open(self, done: int) -> None:
        tracker = self._tracking.kind.make(self._folder)
        earlier = documents.read_metrics(self._folder.path / "metrics.jsonl", done) if done else []
        for record in earlier if self._tracking.kind.again else ():
            tracker.log(numbers(record), record["epoch"])
        self._tracker = tracker

    def _close(self) -> None:
        tracker, self._tracker = self._tracker, None
        if tracker is not None:
            self._attempt(tracker.close)

    def _attempt(self, action: Callable[[], object]) -> None:
        try:
            action()
        except (Exception, SystemExit) as error:  # of any kind: a tracker never stops a training
            self._tracker = None
            if self._tracking.is_on:
                self._tracking.stop(f"failed ({typed_line(error)})")


def numbers(record: Numbers) -> dict[str, float]:
    """Return the finite numbers of a record; trackers draw no infinite `lr`."""
    found = {name: value for name, value in record.items() if isinstance(value, int | float) and name != "epoch"}
    return {name: float(value) for name, value in found.items() if math.isfinite(value)}


def _speed(timing: Numbers) -> dict[str, Any]:
    return {name: timing[name] for name in ("seconds", "images_per_second")}


def _project(folder: RunFolder) -> str:
    return folder.label.table or "polyak"


def _title(folder: RunFolder) -> str:
    return f"{folder.label.row}, seed {folder.training.seed}"
