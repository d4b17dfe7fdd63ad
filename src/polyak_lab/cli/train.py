"""The verbs `train` and `run`, after their arguments are parsed."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from polyak_lab import console as terminal
from polyak_lab import progress
from polyak_lab.cli.inspect import read_runs
from polyak_lab.cli.jobs import Job, check_jobs, cores_warning, train_side_by_side
from polyak_lab.config.run import Run, as_json, content_hash
from polyak_lab.config.strict import shown
from polyak_lab.console import counted, say, warn
from polyak_lab.errors import LabError, RowError
from polyak_lab.imports import uses_own_code
from polyak_lab.processes import group
from polyak_lab.recipes import recipe as recipes
from polyak_lab.recipes.recipe import Recipe, Row
from polyak_lab.recipes.resolve import resolve, where_possible
from polyak_lab.report import table
from polyak_lab.runs import stored
from polyak_lab.runs.folder import RunFolder
from polyak_lab.runs.stored import Label, StoredRun
from polyak_lab.trackers import Tracking
from polyak_lab.training.fit import check_fit
from polyak_lab.training.loop import train

EMULATED = ("AVX", "AVX2")  # what torch calls the x86 CPUs without AVX-512


@group.process_group()
def train_one(wanted: Run, out: Path | None, console: Console, track: str | None = None) -> None:
    """Train one run in its own folder."""
    run = group.on_rank_zero(lambda: _resolved_and_tried(wanted))
    name = f"{run.data.name}-{run.model.name}-{run.optimizer.name}"
    folder_name = recipes.slug(name) if uses_own_code(run) else name  # a path has colons
    path = out or Path("runs") / f"{folder_name}-{content_hash(as_json(run))[:8]}"
    folder = RunFolder(path, run, Label(name))
    group.on_rank_zero(lambda: _warn_of_changes([folder]))
    group.on_rank_zero(lambda: _say_if_emulated([(run, folder)], console))
    with progress.showing(console, epochs=True) as shown:
        job = Job(name, run, folder, _tracking(track))
        train(run, folder, job.tracked(shown))
    group.on_rank_zero(lambda: say(console, f"{path}: {progress.sentence(stored.load_run(path).records[-1])}"))


def _resolved_and_tried(wanted: Run) -> Run:
    """Resolve a run, and try out the user's own code."""
    run = resolve(wanted)
    if uses_own_code(run):
        check_fit(run)
    return run


@group.process_group()
def run_recipe(
    path: Path,
    rows: Sequence[str],
    seeds: Sequence[int],
    out: Path | None,
    console: Console,
    *,
    device: str | None,
    count: int,
    smoke: bool,
    with_report: bool,
    track: str | None = None,
) -> None:
    """Train the unfinished runs of a recipe, `count` at a time, then print the table."""
    check_jobs(count)
    recipe = group.on_rank_zero(lambda: recipes.load(path))
    folder = out or Path("runs") / (f"{recipe.name}-smoke" if smoke else recipe.name)
    jobs, problems = group.on_rank_zero(lambda: _all_jobs(path, recipe, rows, seeds, folder, device, smoke))
    if not jobs:
        raise problems.pop()
    for problem in problems if group.rank() == 0 else ():
        warn(problem)
    damaged = group.on_rank_zero(lambda: sum(job.is_damaged for _, job in jobs))
    if before := sum(job.finished for _, job in jobs) - damaged:
        verb = "was" if before == 1 else "were"
        say(console, f"{before} of {counted(len(jobs), 'run')} {verb} finished before.")
    failures = _train_all(jobs, count, console, track)
    if failures < len(jobs):
        group.on_rank_zero(lambda: show(recipe, folder, console, with_report, [job for _, job in jobs], smoke))
    if problems or failures or damaged:
        raise LabError(" ".join(_remedies(len(problems), failures, damaged, len(jobs))))


def _remedies(rows: int, failures: int, damaged: int, total: int) -> Iterator[str]:
    """Yield a sentence for each kind of what went wrong."""
    runs = counted(total, "run")
    if rows:
        them = "it" if rows == 1 else "them"
        yield f"{counted(rows, 'row')} cannot be trained: correct {them}, and run the same command again."
    if failures:
        them = "it" if failures == 1 else "them"
        yield f"{failures} of {runs} failed: run the same command again to retry {them}."
    if damaged:
        verb = "is" if damaged == 1 else "are"
        yield (
            f"{damaged} of {runs} {verb} damaged and not in the table: restore the files that are named above, or "
            "delete those folders to train the runs again."
        )


def _train_all(runs: Sequence[tuple[Run, RunFolder]], count: int, console: Console, track: str | None) -> int:
    """Train runs, `count` at a time; return how many failed. With `count` = 1 only the user's own code may fail."""
    tracking = _tracking(track)
    group.on_rank_zero(lambda: _say_if_emulated(runs, console))
    jobs = [
        Job(f"[{number}/{len(runs)}] {folder.label.row}, seed {run.training.seed}", run, folder, tracking)
        for number, (run, folder) in enumerate(runs, 1)
    ]
    if count > 1:
        left = [job for job in jobs if not job.folder.finished]
        failures = _store_labels([job for job in jobs if job.folder.finished])
        if warning := cores_warning(left, count):
            say(console, warning)
        with progress.showing_several(console, epochs=False) as make_progress:
            return failures + train_side_by_side(left, count, make_progress)
    failures = 0
    with progress.showing(console, epochs=False) as shown:
        for job in jobs:
            followed = job.tracked(shown)
            try:
                train(job.run, job.folder, followed)
            except RowError as error:
                failures += 1
                followed.run_failed()
                if group.rank() == 0:
                    warn(RowError(f"{job.name}: {error}", error.details))
    return failures


def _store_labels(finished: Sequence[Job]) -> int:
    """Store the names and places that finished runs have in the recipe now; return how many cannot be stored."""
    failures = 0
    for job in finished:
        try:
            job.folder.store_label()
        except LabError as error:
            failures += 1
            warn(RowError(f"{job.name}: {error}", error.details))
    return failures


def _tracking(name: str | None) -> Tracking | None:
    """Prepare the tracker on the rank that writes files."""
    return None if name is None or group.rank() else Tracking(name)


def show(
    recipe: Recipe,
    folder: Path,
    console: Console,
    with_report: bool,
    jobs: Sequence[RunFolder] = (),
    smoke: bool = False,
) -> None:
    """Print the table of a recipe's rows in a folder, and write the report if requested."""
    problems: list[LabError] = []
    own, others = _of_recipe(read_runs([folder], problems), recipe, jobs, smoke)
    rows = table.groups(own)
    terminal.show(console, table.as_rich(rows, recipe.title))
    if others:
        names = ", ".join(sorted({repr(run.label.row) for run in others}))
        number, verb = counted(len(others), "run"), "is" if len(others) == 1 else "are"
        problems.append(LabError(f"{folder} also holds {number} that {verb} not of this recipe ({names})."))
        say(console, str(problems[-1]))
    if with_report:
        from polyak_lab.report import page as report  # Jinja2

        page = folder / "report.html"
        report.write(page, rows, recipe.title, recipe.note, problems)
        say(console, f"Curves: {page}")


def _of_recipe(
    runs: Sequence[StoredRun], recipe: Recipe, jobs: Sequence[RunFolder], smoke: bool
) -> tuple[list[StoredRun], list[StoredRun]]:
    """Split runs into those of this recipe, and those of others or of changed rows."""
    ran = {job.label.row: stored.group_key(job.label.row, job.config) for job in jobs}
    rows = {row.name: row for row in recipe.rows}
    resolved: dict[str, Run | None] = {}  # the other rows of which there are runs

    def is_own(run: StoredRun) -> bool:
        name = run.label.row
        if run.label.table != recipe.name or name not in rows:
            return False
        if name in ran:
            return ran[name] == run.group
        if name not in resolved:
            resolved[name] = _resolved_on_cpu(_cut(rows[name], "cpu", smoke))
        return _is_current(run, resolved[name])

    verdicts = [(run, is_own(run)) for run in runs]
    return [run for run, own in verdicts if own], [run for run, own in verdicts if not own]


def _resolved_on_cpu(row: Row) -> Run | None:
    """Resolve a row that is not trained now; None if that takes data, packages or a device that are not here."""
    try:
        now = resolve(where_possible(recipes.with_seed(row.run, 0)))
    except LabError:
        return None
    asked = row.run.training
    return replace(now, training=replace(now.training, cuda_graph=asked.cuda_graph, compile=asked.compile))


def _is_current(stored_run: StoredRun, now: Run | None) -> bool:
    """Return whether a stored run, on whichever device, is what its row asks for, as far as that is known."""
    if now is None:
        return True
    device = stored_run.config["training"].get("device", "")
    asked = as_json(where_possible(recipes.on_device(now, device)))
    return stored.group_key(stored_run.label.row, asked) == stored_run.group


def _all_jobs(
    path: Path, recipe: Recipe, rows: Sequence[str], seeds: Sequence[int], out: Path, device: str | None, smoke: bool
) -> tuple[list[tuple[Run, RunFolder]], list[RowError]]:
    """Return the runs of all rows, and what is wrong with the user's own code or files of others."""
    jobs: list[tuple[Run, RunFolder]] = []
    problems: list[RowError] = []
    for row in recipes.select(recipe.rows, rows):
        try:
            jobs += _jobs(path, recipe, _cut(row, device, smoke), dict.fromkeys(seeds or recipe.seeds), out)
        except RowError as error:
            problems.append(error)
    _warn_of_changes([folder for _, folder in jobs])
    return jobs, problems


def _say_if_emulated(runs: Sequence[tuple[Run, RunFolder]], console: Console) -> None:
    """Say that bfloat16 is slow on this CPU, where a run that is left requests it."""
    left = [run.training for run, folder in runs if not folder.finished]
    capability = torch.backends.cpu.get_cpu_capability()
    if capability in EMULATED and any(t.device == "cpu" and t.precision == "bfloat16" for t in left):
        say(
            console,
            f'precision = "bfloat16" is emulated on this CPU ({capability}, no AVX-512), where convolutions took up to '
            "ten times as long as in float32.",
        )


def _warn_of_changes(folders: Sequence[RunFolder]) -> None:
    """Warn of runs that were started, and perhaps finished, with other code of the user than there is now."""
    changed: dict[str, list[Path]] = {}
    for folder in folders:
        for package in folder.changed_packages():
            changed.setdefault(package, []).append(folder.path)
    for package, paths in changed.items():
        others = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        text = f"the code of {package} has changed since the run in {paths[0]}{others} was started"
        warn(LabError(f"{text}: delete the folder or choose another --out to train all of it with the new code."))


def _cut(row: Row, device: str | None, smoke: bool) -> Row:
    """Choose the full or the smoke run of a row; a smoke run is not compared with the paper."""
    run = recipes.smoke(row) if smoke else row.run
    paper = None if smoke else row.paper
    return replace(row, run=run if device is None else recipes.on_device(run, device), paper=paper)


def _jobs(
    path: Path,
    recipe: Recipe,
    row: Row,
    seeds: Iterable[int],
    out: Path,
) -> Iterator[tuple[Run, RunFolder]]:
    """Yield the runs of a row; refuse other runs' folders and models that do not fit."""
    position = [known.name for known in recipe.rows].index(row.name)
    label = Label(row.name, recipe.name, position, row.paper)
    for seed in seeds:
        with _name_row_in_errors(path, row):
            run = resolve(where_possible(recipes.with_seed(row.run, seed)))
        folder = RunFolder(out / row.slug / f"seed-{seed}", run, label)
        folder.check()
        if not folder.finished:
            with _name_row_in_errors(path, row):
                check_fit(run)
        yield run, folder


@contextmanager
def _name_row_in_errors(path: Path, row: Row) -> Iterator[None]:
    where = "" if row.line is None else f" (line {row.line})"
    try:
        yield
    except RowError as error:
        raise RowError(f"{path}, row {shown(row.name)}{where}: {error}", error.details) from error
    except LabError as error:
        raise LabError(f"{path}, row {shown(row.name)}: {error}") from error
