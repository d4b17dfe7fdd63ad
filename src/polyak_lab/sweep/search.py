"""`polyak sweep`: search the options of a row on held-out samples; no choice looks at the test set.

A recipe declares the search under [sweep]:

    [sweep]
    row = "ALI-G"
    trials = 20
    axes = { lr = { low = 0.01, high = 10.0, log = true }, momentum = [0.0, 0.9] }

Where all axes are lists with no more combinations than there are trials, each combination is tried once.

The Optuna study is stored as `study.db` in the sweep's folder, and every trial has a run folder
named by its hash. So running the same command again resumes a sweep: finished trials count, and a
trial that was interrupted by Ctrl-C, a signal or an error is repeated with the same values, from
its checkpoint.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console

from polyak_lab.config.run import Run, as_json, content_hash, first_difference, plain
from polyak_lab.config.strict import is_number, read, shown
from polyak_lab.console import encodable, say, warn
from polyak_lab.data import NAMES
from polyak_lab.errors import LabError
from polyak_lab.files import write_atomic
from polyak_lab.recipes import recipe as recipes
from polyak_lab.recipes.resolve import resolve, where_possible
from polyak_lab.runs import documents, stored
from polyak_lab.runs.lock import locked
from polyak_lab.sweep.axes import Axis, Interval, check_values, combinations, read_axes, with_values
from polyak_lab.sweep.study import SEEDS, TrialState, counted, enqueue_each, open_study, optuna, reported
from polyak_lab.sweep.trial import Outcome, Trial, run_trial, score
from polyak_lab.training.fit import check_fit


@dataclass(frozen=True)
class Sweep:
    """The table [sweep] of a recipe: row, number of trials, and values of each option."""

    row: str
    trials: int
    axes: Mapping[str, Any]
    prune: bool = True
    seed: int = 0


class Executor(Protocol):
    """Runs trials: in this process, or on a cluster."""

    def resolve(self, run: Run) -> Run:
        """Resolve a run for the machine that trains it."""
        ...

    def run(self, search: "Search", trials: int) -> None:
        """Ask for trials, run them and tell their outcomes, until so many more are finished."""
        ...


@dataclass(frozen=True)
class Search:
    """An open study: it draws the values of trials, and records their epochs and outcomes."""

    study: optuna.Study
    declared: Sweep
    axes: Mapping[str, Axis]
    base: Run
    folder: Path
    console: Console
    resolve: Callable[[Run], Run]
    optuna_trials: dict[int, optuna.Trial] = field(default_factory=dict)
    last_epoch: dict[int, int] = field(default_factory=dict)
    """The last epoch of each trial that was reported to the study."""

    def ask(self) -> Trial:
        """Draw the values of the next trial."""
        drawn = self.study.ask()
        values = {name: _suggest(drawn, name, axis) for name, axis in self.axes.items()}
        try:
            run = self.resolve(with_values(self.base, values))
        except LabError:  # values that the optimizer refuses would be refused again
            self.study.tell(drawn.number, state=TrialState.FAIL)
            raise
        name = ", ".join(
            f"{key} {format(value, '.4g') if is_number(value) else value}" for key, value in values.items()
        )
        folder = (self.folder / "trials" / content_hash(as_json(run))[:12]).resolve()
        drawn.set_user_attr("folder", folder.name)
        self.optuna_trials[drawn.number] = drawn
        trial = Trial(drawn.number, name, run, folder, encodable(self.folder.name))
        self._report_earlier(trial)
        return trial

    def should_prune(self, number: int, epoch: int, score: float) -> bool:
        """Report an epoch to the study, unless it was before; return whether to prune."""
        if epoch <= self.last_epoch.get(number, 0):
            return False
        self.last_epoch[number] = epoch
        self.optuna_trials[number].report(score, epoch)
        return self.declared.prune and self.optuna_trials[number].should_prune()

    def _report_earlier(self, trial: Trial) -> None:
        """Report the epochs of an interrupted trial with the same values."""
        if (trial.folder / "metrics.jsonl").exists():
            for record in stored.load_run(trial.folder).records:
                self.last_epoch[trial.number] = record["epoch"]
                self.optuna_trials[trial.number].report(score(record), record["epoch"])

    def tell(self, trial: Trial, outcome: Outcome, where: str = "") -> None:
        """Record the outcome of a trial."""
        state = TrialState.PRUNED if outcome.pruned else TrialState.COMPLETE
        self.study.tell(trial.number, None if outcome.pruned else outcome.score, state)
        self.say(trial, outcome, where)

    def fail(self, trial: Trial) -> None:
        """Record that a trial failed; it does not count."""
        self.study.tell(trial.number, state=TrialState.FAIL)

    def say(self, trial: Trial, outcome: Outcome, where: str = "") -> None:
        """Print the outcome of a trial."""
        after = f", stopped after epoch {self.last_epoch[trial.number]}" if outcome.pruned else ""
        say(self.console, f"trial {trial.number}: {trial.name}: {outcome.score:.4f}{after}{where}")


class LocalExecutor:
    """Runs one trial after the other in this process."""

    def resolve(self, run: Run) -> Run:
        """Resolve a run for this machine."""
        return resolve(run)

    def run(self, search: Search, trials: int) -> None:
        """Run trials; an interrupted one stays open, and is repeated on resuming."""
        for _ in range(trials):
            trial = search.ask()
            search.tell(trial, run_trial(trial, partial(search.should_prune, trial.number)))


def run_sweep(
    path: Path, out: Path | None, console: Console, executor: AbstractContextManager[Executor] | None = None
) -> dict[str, Any]:
    """Run the trials of a recipe's sweep that are not finished yet; store and return the result."""
    declared, row = _declared(path)
    where = f"{path}, sweep.axes"
    axes = read_axes(declared.axes, where)
    with executor or nullcontext(LocalExecutor()) as active:  # connects before anything is written
        check_values(axes, row.run, active.resolve, where)
        if executor is None:  # the nodes of a cluster have their own data
            check_fit(active.resolve(row.run))
        folder = out or Path("runs") / f"{path.stem}-sweep"
        database = folder / "study.db"
        with locked(folder), reported(database):
            _store_or_check(folder / "sweep.json", declared, row.run)
            study = open_study(database, declared.seed)
            every = combinations(axes, declared.trials)
            enqueue_each(study, every, declared.seed)
            trials, epochs = len(every) or declared.trials, row.run.training.epochs
            left = max(0, trials - len(counted(study)))
            say(console, f"{path.stem}: {left} of {trials} trials left, {epochs} epochs each at most.")
            if left > 0:
                active.run(Search(study, declared, axes, row.run, folder, console, active.resolve), left)
            return _write_result(study, folder, console)


def _declared(path: Path) -> tuple[Sweep, recipes.Row]:
    recipe = recipes.load(path)
    if not recipe.sweep:
        raise LabError(f"{path} has no [sweep]: declare a row, trials and axes.")
    declared = read(Sweep, recipe.sweep, f"{path}, sweep")
    if declared.trials < 1 or not declared.axes:
        raise LabError(f"{path}, sweep: trials must be 1 or more and axes must name an option.")
    if not 0 <= declared.seed < SEEDS:
        raise LabError(f"{path}, sweep: seed is {shown(declared.seed)}, but must lie between 0 and 2**32 - 1.")
    row, *others = recipes.select(recipe.rows, [declared.row], f"{path}, sweep.row")
    if others:
        raise LabError(f"{path}, sweep: row = {declared.row!r} names {1 + len(others)} rows of the grid: name one.")
    if row.run.data.holdout is None and row.run.data.name in NAMES:
        raise LabError(f"{path}, sweep: trials are compared on held-out samples; set data.holdout, such as 5000.")
    return replace(declared, row=row.name), replace(
        row, run=where_possible(recipes.with_seed(row.run, recipe.seeds[0]))
    )


def _store_or_check(path: Path, declared: Sweep, run: Run) -> None:
    """Store what is searched, and refuse the folder of another search."""
    asked = plain({"sweep": {**vars(declared), "trials": None}, "run": as_json(run)})
    if path.exists():
        difference = first_difference(_read_request(path), asked)
        if difference is not None:
            raise LabError(f"{path} belongs to another sweep ({difference[0]} differs): choose another --out.")
    else:
        write_atomic(path, documents.dump(documents.with_checksum({"asked": asked})))


def _read_request(path: Path) -> dict[str, Any]:
    """Read what the sweep of a folder searches."""
    asked = documents.read_object(path).get("asked")
    if not isinstance(asked, dict):
        raise LabError(f"{path} is damaged (asked is missing): delete its folder to start that sweep over.")
    return asked


def _suggest(trial: optuna.Trial, name: str, axis: Axis) -> Any:
    if isinstance(axis, Interval):
        return trial.suggest_float(name, axis.low, axis.high, log=axis.log)
    return trial.suggest_categorical(name, axis)


def _write_result(study: optuna.Study, folder: Path, console: Console) -> dict[str, Any]:
    """Write and print the best trial, its test score, and the cost of the search."""
    done = counted(study)
    best = study.best_trial
    final = stored.load_run(folder / "trials" / best.user_attrs["folder"]).records[-1]
    epochs, seconds = _cost(folder / "trials")
    result = {
        "trials": len(done),
        "pruned": sum(trial.state == TrialState.PRUNED for trial in done),
        "epochs": epochs,
        "seconds": seconds,
        "best": {"values": best.params, "score": best.value, "folder": best.user_attrs["folder"], "final": final},
    }
    path = folder / "sweep.json"
    write_atomic(path, documents.dump(documents.with_checksum(plain({"asked": _read_request(path), "result": result}))))
    say(console, _summary(result))
    return result


def _cost(folder: Path) -> tuple[int, float]:
    """Return the epochs and the seconds of all trials; what is damaged is not counted, which is said."""
    runs = stored.find_runs([folder], on_problem=warn)
    times = [stored.read_times(run) for run in runs]
    if unknown := times.count(None):
        warn(LabError(f"The time of {unknown} of {len(runs)} trials is not counted: their timings.jsonl is damaged."))
    seconds = sum(line["seconds"] + line["evaluation_seconds"] for lines in times for line in lines or ())
    return sum(len(run.records) for run in runs), seconds


def _summary(result: Mapping[str, Any]) -> str:
    best, final = result["best"], result["best"]["final"]
    test = final["test_accuracy"] if final["test_accuracy"] is not None else final["test_loss"]
    return (
        f"Best of {result['trials']} trials ({result['pruned']} pruned, {result['epochs']} epochs, "
        f"{result['seconds']:.0f} s): {best['values']}, validation {best['score']:.4f}, test {test:.4f}."
    )
