"""`polyak sweep`: try values of a row's options, choose by held-out samples, read the test score of the winner alone.

A recipe declares the search under [sweep]:

    [sweep]
    row = "ALI-G"
    trials = 20
    axes = { lr = { low = 0.01, high = 10.0, log = true }, momentum = [0.0, 0.9] }

The study is an Optuna study in `study.db` in the sweep's folder, and every trial is a run folder named by its content.
So the same command goes on with a sweep that was stopped: finished trials count, and one that was cut short, by Ctrl-C,
a signal or an error, is tried again with the same values, from its checkpoint.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console

from polyak_lab.config.run import Run, as_json, content_hash, first_difference, plain
from polyak_lab.config.strict import read
from polyak_lab.console import say
from polyak_lab.errors import LabError
from polyak_lab.files import write_atomic
from polyak_lab.recipes import recipe as recipes
from polyak_lab.recipes.resolve import resolve
from polyak_lab.runs import documents, stored
from polyak_lab.runs.lock import locked
from polyak_lab.sweep.axes import Axis, Interval, check_values, read_axes, with_values
from polyak_lab.sweep.study import TrialState, counted, open_study, optuna, reported
from polyak_lab.sweep.trial import Outcome, Trial, attempt, score
from polyak_lab.training.fit import check_fit


@dataclass(frozen=True)
class Sweep:
    """What [sweep] declares: the row, the number of trials, and the values of each option."""

    row: str
    trials: int
    axes: Mapping[str, Any]
    prune: bool = True
    seed: int = 0


class Workers(Protocol):
    """Who tries the trials: this process, or a cluster."""

    def resolve(self, run: Run) -> Run:
        """Spell a run out for where it will run."""
        ...

    def work(self, search: "Search", left: int) -> None:
        """Ask for trials, try them and tell what came out, until so many more count."""
        ...


@dataclass(frozen=True)
class Search:
    """An open study: it draws the values of trials, hears of every epoch, and is told once what a trial came to."""

    study: optuna.Study
    declared: Sweep
    axes: Mapping[str, Axis]
    base: Run
    folder: Path
    console: Console
    resolve: Callable[[Run], Run]
    drawn: dict[int, optuna.Trial] = field(default_factory=dict)
    heard: dict[int, int] = field(default_factory=dict)
    """The last epoch of a trial that the study knows."""

    def trial(self, drawn: optuna.Trial) -> Trial:
        """Draw the values of a trial."""
        values = {name: _suggest(drawn, name, axis) for name, axis in self.axes.items()}
        try:
            run = self.resolve(with_values(self.base, values))
        except LabError:  # values that the optimizer refuses would be refused again
            self.study.tell(drawn.number, state=TrialState.FAIL)
            raise
        name = ", ".join(f"{key} {value:.4g}" for key, value in values.items())
        folder = (self.folder / "trials" / content_hash(as_json(run))[:12]).resolve()
        drawn.set_user_attr("folder", folder.name)
        self.drawn[drawn.number] = drawn
        trial = Trial(drawn.number, name, run, folder, self.folder.name)
        self._report_earlier(trial)
        return trial

    def ask(self) -> Trial:
        """Open the next trial."""
        return self.trial(self.study.ask())

    def behind(self, number: int, epoch: int, found: float) -> bool:
        """Take note of an epoch, unless it is one that had to be repeated; say whether to stop there."""
        if epoch <= self.heard.get(number, 0):
            return False
        self.heard[number] = epoch
        self.drawn[number].report(found, epoch)
        return self.declared.prune and self.drawn[number].should_prune()

    def _report_earlier(self, trial: Trial) -> None:
        """Report the epochs that an interrupted trial of these values did before."""
        if (trial.folder / "metrics.jsonl").exists():
            for record in stored.load_run(trial.folder).records:
                self.heard[trial.number] = record["epoch"]
                self.drawn[trial.number].report(score(record), record["epoch"])

    def tell(self, trial: Trial, outcome: Outcome, where: str = "") -> None:
        """Take note of what a trial came to."""
        state = TrialState.PRUNED if outcome.pruned else TrialState.COMPLETE
        self.study.tell(trial.number, None if outcome.pruned else outcome.score, state)
        self.say(trial, outcome, where)

    def fail(self, trial: Trial) -> None:
        """Take note of a trial that came to nothing; it does not count."""
        self.study.tell(trial.number, state=TrialState.FAIL)

    def say(self, trial: Trial, outcome: Outcome, where: str = "") -> None:
        """Print what a trial came to."""
        after = f", stopped after epoch {self.heard[trial.number]}" if outcome.pruned else ""
        say(self.console, f"trial {trial.number}: {trial.name}: {outcome.score:.4f}{after}{where}")


class Here:
    """This process: one trial after the other."""

    def resolve(self, run: Run) -> Run:
        """Spell a run out for this machine."""
        return resolve(run)

    def work(self, search: Search, left: int) -> None:
        """Try one trial after the other; one that is interrupted stays open, and is tried again by the next command."""
        for _ in range(left):
            trial = search.ask()
            search.tell(trial, attempt(trial, partial(search.behind, trial.number)))


def run_sweep(
    path: Path, out: Path | None, console: Console, workers: AbstractContextManager[Workers] | None = None
) -> dict[str, Any]:
    """Run the trials of a recipe's sweep that are not done yet; return and store what came out."""
    declared, row = _declared(path)
    where = f"{path}, sweep.axes"
    axes = read_axes(declared.axes, where)
    with workers or nullcontext(Here()) as ready:  # nothing is written before there is someone to do the work
        check_values(axes, row.run, ready.resolve, where)
        if workers is None:  # the nodes of a cluster have their own data
            check_fit(ready.resolve(row.run))
        folder = out or Path("runs") / f"{path.stem}-sweep"
        database = folder / "study.db"
        with locked(folder), reported(database):
            _keep(folder / "sweep.json", declared, row.run)
            study = open_study(database, declared.seed)
            left = declared.trials - len(counted(study))
            epochs = row.run.training.epochs
            say(console, f"{path.stem}: {left} of {declared.trials} trials left, {epochs} epochs each at most.")
            if left > 0:
                ready.work(Search(study, declared, axes, row.run, folder, console, ready.resolve), left)
            return _conclude(study, folder, console)


def _declared(path: Path) -> tuple[Sweep, recipes.Row]:
    recipe = recipes.load(path)
    if not recipe.sweep:
        raise LabError(f"{path} has no [sweep]: declare a row, trials and axes.")
    declared = read(Sweep, recipe.sweep, f"{path}, sweep")
    if declared.trials < 1 or not declared.axes:
        raise LabError(f"{path}, sweep: trials must be 1 or more and axes must name an option.")
    row, *others = recipes.select(recipe.rows, [declared.row])
    if others:
        raise LabError(f"{path}, sweep: row = {declared.row!r} names {1 + len(others)} rows of the grid: name one.")
    if row.run.data.holdout is None:
        raise LabError(f"{path}, sweep: trials are compared on held-out samples; set data.holdout, such as 5000.")
    return replace(declared, row=row.name), replace(row, run=recipes.with_seed(row.run, recipe.seeds[0]))


def _keep(path: Path, declared: Sweep, run: Run) -> None:
    """Store what is searched, and refuse a folder that holds another search."""
    asked = plain({"sweep": {**vars(declared), "trials": None}, "run": as_json(run)})
    if path.exists():
        difference = first_difference(_asked(path), asked)
        if difference is not None:
            raise LabError(f"{path} belongs to another sweep ({difference[0]} differs): choose another --out.")
    else:
        write_atomic(path, documents.dump(documents.with_checksum({"asked": asked})))


def _asked(path: Path) -> dict[str, Any]:
    """Read what a folder's sweep was asked for."""
    asked = documents.read_object(path).get("asked")
    if not isinstance(asked, dict):
        raise LabError(f"{path} is damaged (asked is missing): delete its folder to start that sweep over.")
    return asked


def _suggest(trial: optuna.Trial, name: str, axis: Axis) -> Any:
    if isinstance(axis, Interval):
        return trial.suggest_float(name, axis.low, axis.high, log=axis.log)
    return trial.suggest_categorical(name, axis)


def _conclude(study: optuna.Study, folder: Path, console: Console) -> dict[str, Any]:
    """Name the winner and what it cost; the test score is read here and nowhere else."""
    done = counted(study)
    best = study.best_trial
    final = stored.load_run(folder / "trials" / best.user_attrs["folder"]).records[-1]
    spent = [documents.read_timings(path) for path in sorted(folder.glob("trials/*/timings.jsonl"))]
    result = {
        "trials": len(done),
        "pruned": sum(trial.state == TrialState.PRUNED for trial in done),
        "epochs": sum(map(len, spent)),
        "seconds": sum(line["seconds"] + line["evaluation_seconds"] for lines in spent for line in lines),
        "best": {"values": best.params, "score": best.value, "folder": best.user_attrs["folder"], "final": final},
    }
    path = folder / "sweep.json"
    write_atomic(path, documents.dump(documents.with_checksum(plain({"asked": _asked(path), "result": result}))))
    say(console, _sentence(result))
    return result


def _sentence(result: Mapping[str, Any]) -> str:
    best, final = result["best"], result["best"]["final"]
    test = final["test_accuracy"] if final["test_accuracy"] is not None else final["test_loss"]
    return (
        f"Best of {result['trials']} trials ({result['pruned']} pruned, {result['epochs']} epochs, "
        f"{result['seconds']:.0f} s): {best['values']}, validation {best['score']:.4f}, test {test:.4f}."
    )
