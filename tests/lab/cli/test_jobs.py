"""`polyak run --jobs N`: the same folders as one run after the other, whatever happens to some of the runs."""

import io
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

from lab.runs import call
from polyak_lab import progress
from polyak_lab.cli import jobs, train, worker
from polyak_lab.runs.lock import locked

RECIPE = """
title = "Small"
seeds = [0, 1]
[defaults]
data = "digits"
model = "mlp"
training = {{ epochs = {epochs}, batch_size = 256, device = "cpu", threads = 1 }}
[[row]]
name = "ALI-G"
optimizer = {{ name = "alig", lr = 1.0, momentum = 0.9 }}
[[row]]
name = "SGD"
optimizer = {{ name = "sgd", lr = 0.1 }}
"""

NAME = "[12/20] SGD, momentum 0.9, seed 17"
TEXT_MODEL = 'model = "gpt-small"\noptimizer = "alig"\n'


@pytest.fixture
def recipe(tmp_path):
    return written(tmp_path, epochs=2)


def written(folder, epochs):
    path = folder / "small.toml"
    path.write_text(RECIPE.format(epochs=epochs))
    return path


def results(folder):
    """What must not depend on how the runs of a folder were made, to the bit."""
    found = {}
    for path in sorted(folder.rglob("seed-*")):
        state = torch.load(path / "checkpoint.pt", weights_only=True)["state"]
        final = json.loads((path / "summary.json").read_text())["final"]
        weights = {name: bytes(value.numpy().tobytes()) for name, value in state["model"].items()}
        config, metrics = (path / "config.json").read_bytes(), (path / "metrics.jsonl").read_bytes()
        found[str(path.relative_to(folder))] = (config, metrics, final, weights)
    return found


def in_sequence(recipe, folder, *arguments):
    assert call("run", recipe, "--out", folder, *arguments) == 0
    return results(folder)


def test_runs_side_by_side_are_those_in_sequence(recipe, tmp_path, capsys):
    expected = in_sequence(recipe, tmp_path / "one")
    table = capsys.readouterr().out.partition("Small")[2]
    assert call("run", recipe, "--out", tmp_path / "two", "--jobs", 2) == 0
    said, errors = capsys.readouterr()
    assert results(tmp_path / "two") == expected
    assert [sorted(p.name for p in path.iterdir()) for path in sorted((tmp_path / "two").rglob("seed-*"))] == [
        sorted(p.name for p in path.iterdir()) for path in sorted((tmp_path / "one").rglob("seed-*"))
    ]
    for number, name in enumerate(("ALI-G, seed 0", "ALI-G, seed 1", "SGD, seed 0", "SGD, seed 1"), 1):
        assert said.count(f"[{number}/4] {name}: train loss ") == 1
    assert said.partition("Small")[2] == table
    assert errors == ""
    assert call("run", recipe, "--out", tmp_path / "two", "--jobs", 2) == 0
    assert "4 of 4 runs were finished before." in capsys.readouterr().out


def command(program, recipe, folder, *arguments):
    return [sys.executable, *program, "run", recipe, "--out", folder, *map(str, arguments)]


@pytest.mark.slow
def test_a_run_that_breaks_does_not_stop_the_others(recipe, tmp_path, capsys):
    seeds = ("--seeds", *range(9), "--row", "ALI-G")
    broken = command([Path(__file__).with_name("faulty.py")], recipe, tmp_path / "runs", *seeds, "--jobs", 2)
    done = subprocess.run(broken, capture_output=True, text=True)
    said = dict(line.split(": ", 2)[1:] for line in done.stderr.splitlines()[:-1])
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1] == "polyak: 7 of 9 runs failed: run the same command again to retry them."
    for name, part in {
        "[2/9] ALI-G, seed 1": "The device cpu ran out of memory with batch_size = 256",
        "[3/9] ALI-G, seed 2": "its process was killed, as when a machine has no memory left; the checkpoint is kept.",
        "[4/9] ALI-G, seed 3": "its process ended with signal 11 (Segmentation fault); the checkpoint is kept.",
        "[5/9] ALI-G, seed 4": "its process ended with exit status 7; the checkpoint is kept.",
        "[6/9] ALI-G, seed 5": "ValueError in faulty.py, line 32: a fault of ours in [two] lines.",
        "[7/9] ALI-G, seed 6": "The file x cannot be read.",
        "[9/9] ALI-G, seed 8": "its process was killed, as when a machine has no memory left; the checkpoint is kept.",
    }.items():
        assert said.pop(name).startswith(part), done.stderr
    assert not said
    assert "[1/9] ALI-G, seed 0: train loss" in done.stdout
    assert "[8/9] ALI-G, seed 7: train loss" in done.stdout
    assert "Small" in done.stdout  # the table of the others
    assert call("run", recipe, "--out", tmp_path / "runs", *seeds) == 0  # nothing was lost: they resume
    assert capsys.readouterr().out.count("resuming after epoch 1 of 2") == 7
    assert results(tmp_path / "runs") == in_sequence(recipe, tmp_path / "expected", *seeds)


def test_bad_places_are_said_for_each_run(tmp_path, capsys, monkeypatch):
    """A folder in use, data that vanish after the start and fewer cores than jobs."""
    recipe, text = written(tmp_path, epochs=1), tmp_path / "text.txt"
    text.write_text("some text to read " * 1000)
    data = f'{{ name = "text", root = "{text}" }}'
    recipe.write_text(f'{recipe.read_text()}[[row]]\nname = "lost"\ndata = {data}\n{TEXT_MODEL}')
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})

    def without_text(*arguments):
        text.unlink()
        return jobs.train_side_by_side(*arguments)

    monkeypatch.setattr(train, "train_side_by_side", without_text)
    with locked(tmp_path / "runs" / "sgd" / "seed-0"):
        assert call("run", recipe, "--out", tmp_path / "runs", "--seeds", 0, "--jobs", 2) == 1
    said, errors = capsys.readouterr()
    assert said.startswith("2 runs side by side have up to 2 threads, but 1 CPU core is available: ")
    assert "slower than alone. Fewer --jobs avoid that." in said  # they have one thread each
    *failed, last = errors.splitlines()
    assert len(failed) == 2
    assert any(re.match(r"polyak: \[2/3\] SGD, seed 0: Another process is at work in .*\.$", line) for line in failed)
    assert any(re.match(r"polyak: \[3/3\] lost, seed 0: .*text\.txt.*\.$", line) for line in failed)
    assert last == "polyak: 2 of 3 runs failed: run the same command again to retry them."
    assert "[1/3] ALI-G, seed 0: train loss" in said
    assert len(finished(tmp_path)) == 1


def finished(folder):
    return [*folder.rglob("summary.json")]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["interrupt", "terminate", "kill", "interrupt one"])
def test_a_stop_ends_all_runs_and_the_same_command_resumes(how, tmp_path, capsys):
    recipe = written(tmp_path, epochs=100)
    row = ("--row", "SGD")
    arguments = command(["-m", "polyak_lab"], recipe, tmp_path / "runs", *row, "--jobs", 2)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(arguments, **pipes, start_new_session=True) as child:
        wait_for(lambda: len([*(tmp_path / "runs").rglob("checkpoint.pt")]) == 2)
        workers = children(child.pid)
        if how == "kill":
            child.kill()
        elif how == "interrupt one":  # as `kill -INT` does: the main process alone gets it
            child.send_signal(signal.SIGINT)
        else:  # as terminals and launchers do: the workers get it as well
            os.killpg(child.pid, {"interrupt": signal.SIGINT, "terminate": signal.SIGTERM}[how])
        _, errors = child.communicate(timeout=120)
    assert child.returncode == {"interrupt": 130, "interrupt one": 130, "terminate": 143, "kill": -9}[how]
    assert errors == ("" if how == "kill" else "polyak: stopped; run the same command again to resume.\n")
    assert len(workers) >= 2
    wait_for(lambda: not any(map(is_alive, workers)))
    assert len(finished(tmp_path)) < 2
    resumed = in_sequence(recipe, tmp_path / "runs", *row)
    assert "resuming after epoch " in capsys.readouterr().out
    assert resumed == in_sequence(recipe, tmp_path / "expected", *row)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["interrupt twice", "kill"])
def test_a_run_that_hangs_does_not_outlive_the_command(how, tmp_path, capsys):
    """Its folder would stay locked."""
    recipe, program = written(tmp_path, epochs=2), [Path(__file__).with_name("faulty.py")]
    arguments = command(program, recipe, tmp_path / "runs", "--row", "SGD", "--seeds", 9, 0, "--jobs", 2)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(arguments, **pipes, start_new_session=True) as child:
        wait_for(lambda: finished(tmp_path) and [*(tmp_path / "runs" / "sgd" / "seed-9").glob("checkpoint.pt")])
        workers = children(child.pid)
        child.send_signal(signal.SIGKILL if how == "kill" else signal.SIGINT)
        while child.poll() is None:  # a second signal counts once some time has passed
            time.sleep(0.5)
            child.send_signal(signal.SIGINT)
        assert child.returncode == (-9 if how == "kill" else 130)
    wait_for(lambda: not any(map(is_alive, workers)), seconds=20)
    assert call("run", recipe, "--out", tmp_path / "runs", "--row", "SGD", "--seeds", 9) == 0
    assert "resuming after epoch 1 of 2" in capsys.readouterr().out


def test_an_interrupt_while_a_process_starts_ends_it(recipe, tmp_path, capsys, monkeypatch):
    start = multiprocessing.context.SpawnProcess.start

    def interrupted(process):
        start(process)
        os.kill(os.getpid(), signal.SIGINT)  # arrives when it is no longer blocked

    monkeypatch.setattr(multiprocessing.context.SpawnProcess, "start", interrupted)
    assert call("run", recipe, "--out", tmp_path / "runs", "--jobs", 2) == 130
    assert capsys.readouterr().err == "polyak: stopped; run the same command again to resume.\n"
    assert not multiprocessing.active_children()


def test_processes_that_do_not_end_share_the_patience_of_a_stop(monkeypatch):
    clock, joined = [0.0], []

    class Hung:
        job = None

        def __init__(self, shown):
            self.start = self.receive = None

        def stop(self):
            pass

        def join(self, seconds):
            joined.append(seconds)
            clock[0] += max(0.0, seconds)

    monkeypatch.setattr(jobs, "_Worker", Hung)
    monkeypatch.setattr(jobs, "monotonic", lambda: clock[0])
    with pytest.raises(TypeError):  # in place of Ctrl-C
        jobs.train_side_by_side([object()] * 5, 5, lambda: None)
    assert len(joined) == 5
    assert clock[0] == jobs.PATIENCE


def wait_for(condition, seconds=120):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def children(pid):
    return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("renamed", [False, True])
def test_a_finished_run_in_use_by_another_process(renamed, recipe, tmp_path, capsys):
    arguments = ("run", recipe, "--out", tmp_path / "runs", "--jobs", 2)
    in_sequence(recipe, tmp_path / "runs", "--seeds", 0, "--row", "SGD")
    if renamed:  # the name that the run has in the recipe now has to be stored
        recipe.write_text(recipe.read_text().replace('"SGD"', '"sgd"'))
    capsys.readouterr()
    with locked(tmp_path / "runs" / "sgd" / "seed-0"):
        assert call(*arguments, "--seeds", 0) == int(renamed)
    said, errors = capsys.readouterr()
    assert "[1/2] ALI-G, seed 0: train loss" in said
    assert (
        re.match(r"polyak: \[2/2\] sgd, seed 0: Another process is at work in .*\.$", errors, re.M)
        if renamed
        else (errors == "")
    )
    assert call(*arguments, "--seeds", 0) == 0


@pytest.mark.parametrize(
    ("width", "name", "shown"),
    [
        (67, NAME, NAME),
        (40, NAME, "[12/20] SGD, momentum 0.9, seed…"),
        (20, NAME, "[12/20] SGD,…"),
        (40, "[1/2] " + 40 * "模", "[1/2] " + 13 * "模" + "…"),
    ],
)
def test_a_narrow_terminal_shows_what_fits_of_a_name(width, name, shown):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=width)
    with progress.showing_several(console, epochs=False) as make_progress:
        one = make_progress()
        one.run_named(name)
        one.run_started(2, 10, 1)
        one.bars.refresh()
        line = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", screen.getvalue()).splitlines()[-1]
    assert line.strip().replace(" …", "…").startswith(shown)
    assert " 50 %" in line


def test_a_terminal_sees_a_line_per_run():
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120)
    with progress.showing_several(console, epochs=False) as make_progress:
        one, other = make_progress(), make_progress()
        for shown in (one, other):
            shown.run_named({one: "ALI-G, seed 0", other: "SGD, seed 1"}[shown])
            shown.run_started(2, 10, 1)
        one.step(1, worker.Latest((0.5, 0.9, 0.1)), 5)
        one.bars.refresh()
        last = screen.getvalue().splitlines()[-2:]
        other.run_failed()
        screen.truncate(0)
        one.bars.refresh()
    assert re.search(r"ALI-G, seed 0.* 75 %.*loss 5e-01  accuracy 90 %  step size 1e-01", last[0])
    assert re.search(r"SGD, seed 1.* 50 %", last[1])
    assert "SGD" not in screen.getvalue()


@pytest.mark.parametrize("count", ["two", "2.5", "", "nan"])
def test_a_number_of_jobs_that_is_no_whole_number(count, recipe, tmp_path, capsys):
    assert call("run", recipe, "--out", tmp_path / "runs", "--jobs", count) == 2
    errors = capsys.readouterr().err
    assert "--jobs" in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_more_jobs_than_runs(recipe, tmp_path, capsys):
    arguments = ("run", recipe, "--out", tmp_path / "runs", "--seeds", 0, "--row", "SGD", "--jobs")
    assert call(*arguments, 10**30) == 0
    assert len(finished(tmp_path)) == 1
    said, errors = capsys.readouterr()
    assert "[1/1] SGD, seed 0: train loss" in said
    assert "side by side" not in said  # one run alone competes with no other
    assert errors == ""


@pytest.mark.parametrize("count", [0, -1])
def test_a_number_of_jobs_that_cannot_be(count, recipe, tmp_path, capsys):
    assert call("run", recipe, "--out", tmp_path / "runs", "--jobs", count) == 1
    assert capsys.readouterr().err == f"polyak: --jobs is {count}, but must be 1 or more.\n"
    assert not (tmp_path / "runs").exists()


def test_torchrun_and_jobs_exclude_each_other(monkeypatch):
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(jobs.LabError, match=r"torchrun trains one run in many processes, .* choose one of them\.$"):
        jobs.check_jobs(2)
    jobs.check_jobs(1)


def test_a_process_that_cannot_start_is_said_for_each_run(recipe, tmp_path, capsys, monkeypatch):
    def full(self):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(jobs._Worker, "_start_process", full)
    assert call("run", recipe, "--out", tmp_path / "runs", "--seeds", 0, "--jobs", 2) == 1
    assert capsys.readouterr().err.splitlines() == [
        "polyak: [1/2] ALI-G, seed 0: cannot start a process: Resource temporarily unavailable.",
        "polyak: [2/2] SGD, seed 0: cannot start a process: Resource temporarily unavailable.",
        "polyak: 2 of 2 runs failed: run the same command again to retry them.",
    ]
