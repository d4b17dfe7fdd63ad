"""The Optuna study of a sweep: a SQLite database from which a search resumes."""

import random
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from polyak_lab.errors import LabError

try:
    import optuna
    from optuna.trial import FrozenTrial, TrialState
    from sqlalchemy.exc import SQLAlchemyError
except ImportError as error:
    raise LabError("polyak sweep needs Optuna: install it with pip install 'polyak[sweep]'.") from error

# What needs Optuna comes from here.
__all__ = ["SEEDS", "TrialState", "counted", "enqueue_each", "open_study", "optuna", "reported"]

RESUMES = "resumes"  # the attribute of a trial that repeats an interrupted one
LOCK_TIMEOUT = 10.0  # seconds
SEEDS = 1 << 32  # how many seeds a sampler has


def open_study(path: Path, seed: int) -> optuna.Study:
    """Open the study at a path; interrupted trials are enqueued first, with the same values."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(
            storage=_storage(path), study_name="sweep", direction="maximize", load_if_exists=True
        )
        trials = study.trials
    except Exception as error:  # a damaged database raises SQL, JSON, key and type errors
        raise _unusable(path, error) from error
    with reported(path):
        study.sampler = optuna.samplers.TPESampler(seed=(seed + len(trials)) % SEEDS)
        _enqueue_interrupted(study, trials)
    return study


@contextmanager
def reported(path: Path) -> Iterator[None]:
    """Turn an error of the study's database into a sentence."""
    try:
        yield
    except (optuna.exceptions.OptunaError, SQLAlchemyError, sqlite3.Error) as error:
        raise _unusable(path, error) from error


def enqueue_each(study: optuna.Study, combinations: Sequence[dict[str, Any]], seed: int) -> None:
    """Enqueue what was not tried yet, in random order: the sampler would repeat some and miss others."""
    for values in random.Random(seed).sample(combinations, len(combinations)):
        study.enqueue_trial(values, skip_if_exists=True)


def counted(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials that came to a score."""
    return list(study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED)))


def _storage(path: Path) -> optuna.storages.RDBStorage:
    """Connect by path: a database's address would give a meaning to `?`, `%` and `file:` in it."""

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(path.absolute(), timeout=LOCK_TIMEOUT, check_same_thread=False)

    return optuna.storages.RDBStorage("sqlite:///study.db", engine_kwargs={"creator": connect})


def _enqueue_interrupted(study: optuna.Study, trials: list[FrozenTrial]) -> None:
    """Enqueue interrupted trials before closing them, so that no interruption loses one."""
    enqueued = {trial.user_attrs.get(RESUMES) for trial in trials}
    for trial in trials:
        if trial.state != TrialState.RUNNING:
            continue
        values = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
        if values and trial.number not in enqueued:
            study.enqueue_trial(values, user_attrs={RESUMES: trial.number})
        study.tell(trial.number, state=TrialState.FAIL)


def _unusable(path: Path, error: Exception) -> LabError:
    if "database is locked" in str(error):
        return LabError(f"Another program has locked {path}: close it, then start the same command again.")
    cause = error.__cause__ if isinstance(error.__cause__, SQLAlchemyError) else error
    reason = " ".join(str(getattr(cause, "orig", None) or cause).split())[:80] or type(error).__name__
    return LabError(f"The study {path} cannot be used ({reason}): delete it to start the search over.")
