"""`polyak sweep`: try values of a row's options, choose by held-out samples, read the test score of the winner alone.

A recipe declares the search under [sweep]:

    [sweep]
    row = "ALI-G"
    trials = 20
    axes = { lr = { low = 0.01, high = 10.0, log = true }, momentum = [0.0, 0.9] }

The study is an Optuna study in `study.db` in the sweep's folder, and every trial is a run folder named by its content.
So the same command goes on with a sweep that was stopped: finished trials count, and one that was cut short is tried
again with the same values, from its checkpoint.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from polyak_lab import recipes, stored
from polyak_lab.arguments import say
from polyak_lab.config import Run, as_json, content_hash, first_difference, plain, read
from polyak_lab.errors import LabError
from polyak_lab.files import write_atomic
from polyak_lab.progress import Progress
from polyak_lab.record import RunFolder
from polyak_lab.resolve import resolve
from polyak_lab.stored import Label
from polyak_lab.train import train

try:
    import optuna
except ImportError as error:
    raise LabError("polyak sweep needs Optuna: install it with pip install 'polyak[sweep]'.") from error


@dataclass(frozen=True)
class Sweep:
    """What [sweep] declares: the row, the number of trials, and the values of each option."""

    row: str
    trials: int
    axes: Mapping[str, Any]
    prune: bool = True
    seed: int = 0


@dataclass(frozen=True)
class Interval:
    """An axis from `low` to `high`, in logarithms if `log`."""

    low: float
    high: float
    log: bool = field(default=False)


class _Reporter(Progress):
    """Tell the study about every epoch, and stop a trial that falls behind the others."""

    def __init__(self, trial: optuna.Trial, prune: bool) -> None:
        super().__init__(Console(quiet=True), epochs=False)
        self.trial = trial
        self.prune = prune

    def epoch_done(self, record: Mapping[str, Any], timing: Mapping[str, Any]) -> None:
        self.trial.report(score(record), record["epoch"])
        if self.prune and self.trial.should_prune():
            raise optuna.TrialPruned


def run_sweep(path: Path, out: Path | None, console: Console) -> dict[str, Any]:
    """Run the trials of a recipe's sweep that are not done yet; return and store what came out."""
    declared, row = _declared(path)
    folder = out or Path("runs") / f"{path.stem}-sweep"
    folder.mkdir(parents=True, exist_ok=True)
    _keep(folder / "sweep.json", declared, row.run)
    study = _study(folder, declared)
    left = declared.trials - len(_counted(study))
    say(
        console, f"{path.stem}: {left} of {declared.trials} trials left, {row.run.training.epochs} epochs each at most."
    )
    if left > 0:
        study.optimize(lambda trial: _trial(trial, declared, row.run, folder, console), n_trials=left)
    return _conclude(study, declared, folder, console)


def score(record: Mapping[str, Any]) -> float:
    """Take what trials are compared by: validation accuracy, or minus the validation loss where there is none."""
    accuracy = record["validation_accuracy"]
    return float(-record["validation_loss"] if accuracy is None else accuracy)


def _declared(path: Path) -> tuple[Sweep, recipes.Row]:
    recipe = recipes.load(path)
    if not recipe.sweep:
        raise LabError(f"{path} has no [sweep]: declare a row, trials and axes.")
    declared = read(Sweep, recipe.sweep, f"{path}, sweep")
    if declared.trials < 1 or not declared.axes:
        raise LabError(f"{path}, sweep: trials must be 1 or more and axes must name an option.")
    (row,) = recipes.select(recipe.rows, [declared.row])
    if row.run.data.holdout is None:
        raise LabError(f"{path}, sweep: trials are compared on held-out samples; set data.holdout, such as 5000.")
    return declared, row


def _keep(path: Path, declared: Sweep, run: Run) -> None:
    """Store what is searched, and refuse a folder that holds another search."""
    asked = plain({"sweep": {**vars(declared), "trials": None}, "run": as_json(run)})
    if path.exists():
        difference = first_difference(stored.read_json(path)["asked"], asked)
        if difference is not None:
            raise LabError(f"{path} belongs to another sweep ({difference[0]} differs): choose another --out.")
    else:
        write_atomic(path, stored.pretty({"asked": asked}))


def _study(folder: Path, declared: Sweep) -> optuna.Study:
    """Open the study; values that were being tried when it stopped are the first to be tried again."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = f"sqlite:///{folder / 'study.db'}"
    study = optuna.create_study(storage=storage, study_name="sweep", direction="maximize", load_if_exists=True)
    study.sampler = optuna.samplers.TPESampler(seed=declared.seed + len(study.trials))
    for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        study.enqueue_trial(trial.params)
    return study


def _counted(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    states = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    return study.get_trials(states=states)


def _trial(trial: optuna.Trial, declared: Sweep, base: Run, folder: Path, console: Console) -> float:
    values = {name: _suggest(trial, name, axis) for name, axis in declared.axes.items()}
    run = resolve(_with(base, values))
    name = ", ".join(f"{key} {value:.4g}" for key, value in values.items())
    path = folder / "trials" / content_hash(as_json(run))[:12]
    trial.set_user_attr("folder", path.name)
    train(run, RunFolder(path, run, Label(name, folder.name)), _Reporter(trial, declared.prune))
    found = score(stored.load(path).records[-1])
    say(console, f"trial {trial.number}: {name}: {found:.4f}")
    return found


def _suggest(trial: optuna.Trial, name: str, axis: Any) -> Any:
    if isinstance(axis, list):
        return trial.suggest_categorical(name, axis)
    between = read(Interval, axis, f"sweep.axes.{name}")
    return trial.suggest_float(name, between.low, between.high, log=between.log)


def _with(run: Run, values: Mapping[str, Any]) -> Run:
    options = {key: value for key, value in values.items() if key != "l2_ball"}
    ball = values.get("l2_ball", run.optimizer.l2_ball)
    optimizer = replace(run.optimizer, l2_ball=ball, options={**run.optimizer.options, **options})
    return replace(run, optimizer=optimizer)


def _conclude(study: optuna.Study, declared: Sweep, folder: Path, console: Console) -> dict[str, Any]:
    """Name the winner and what it cost; the test score is read here and nowhere else."""
    counted = _counted(study)
    best = study.best_trial
    final = stored.load(folder / "trials" / best.user_attrs["folder"]).records[-1]
    spent = [stored.read_lines(path) for path in sorted(folder.glob("trials/*/timings.jsonl"))]
    result = {
        "trials": len(counted),
        "pruned": sum(trial.state == optuna.trial.TrialState.PRUNED for trial in counted),
        "epochs": sum(map(len, spent)),
        "seconds": sum(line["seconds"] + line["evaluation_seconds"] for lines in spent for line in lines),
        "best": {"values": best.params, "score": best.value, "folder": best.user_attrs["folder"], "final": final},
    }
    path = folder / "sweep.json"
    write_atomic(path, stored.pretty(plain({"asked": stored.read_json(path)["asked"], "result": result})))
    say(console, _sentence(result))
    return result


def _sentence(result: Mapping[str, Any]) -> str:
    best, final = result["best"], result["best"]["final"]
    test = final["test_accuracy"] if final["test_accuracy"] is not None else final["test_loss"]
    return (
        f"Best of {result['trials']} trials ({result['pruned']} pruned, {result['epochs']} epochs, "
        f"{result['seconds']:.0f} s): {best['values']}, validation {best['score']:.4f}, test {test:.4f}."
    )
