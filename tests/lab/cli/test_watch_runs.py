"""`polyak watch`: what it shows of runs, when it ends, and that it leaves the runs alone."""

import io
import itertools
import json
import re

import pytest
from rich.console import Console

from lab.report.test_tables import finish, store
from lab.runs import call
from polyak_lab.cli import watch, watch_view
from polyak_lab.runs.watcher import Watcher


@pytest.fixture(autouse=True)
def no_sleep(monkeypatch):
    monkeypatch.setattr(watch.time, "sleep", lambda seconds: None)


def begun(folder, epochs=2, row="ALI-G", **numbers):
    """A run of which some of three epochs are done."""
    store(folder, row, "alig", None, 0, 0.9, 0.25, finished=False, **numbers)
    metrics = folder / "metrics.jsonl"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:epochs]))
    return folder


def then(monkeypatch, *actions):
    """Let each pause between two looks do the next thing."""
    coming = iter(actions)
    monkeypatch.setattr(watch.time, "sleep", lambda seconds: next(coming, lambda: None)())


def end(folder):
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(last | {"epoch": last["epoch"] + 1}) + "\n")
    finish(folder)


def screen(root, width=100, height=30, encoding="utf-8", now=None):
    console = Console(file=io.TextIOWrapper(io.BytesIO(), encoding), width=width, height=height, legacy_windows=False)
    snapshots = Watcher(root).look()
    with console.capture() as captured:
        console.print(watch_view.render(snapshots, console, snapshots[0].changed + 1 if now is None else now))
    return captured.get()


def test_without_a_terminal_it_prints_a_line_for_every_epoch_and_ends_with_the_run(tmp_path, monkeypatch, capsys):
    run = begun(tmp_path / "run")
    before = {path.name: path.stat().st_mtime_ns for path in run.iterdir()}
    then(monkeypatch, lambda: None, lambda: end(run))
    assert call("watch", run) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(": train")[0] for line in lines] == [
        "ALI-G, seed 0: epoch 2/?",
        "ALI-G, seed 0: epoch 3/?",
        "ALI-G, seed 0: finished",
    ]
    assert {path.name for path in run.iterdir()} == {*before, "summary.json"}


def test_a_folder_is_followed_until_its_last_run_is_over(tmp_path, monkeypatch, capsys):
    first = begun(tmp_path / "runs" / "a", row="A")
    clock = itertools.count()
    monkeypatch.setattr(watch.time, "monotonic", lambda: float(next(clock)))
    second = tmp_path / "runs" / "b"
    then(monkeypatch, lambda: end(first), lambda: begun(second, row="B"), lambda: end(second))
    assert call("watch", tmp_path / "runs") == 0
    printed = capsys.readouterr().out
    assert (
        printed.index("A, seed 0: finished")
        < printed.index("B, seed 0: epoch 2")
        < printed.index("B, seed 0: finished")
    )


def test_ctrl_c_detaches(tmp_path, monkeypatch, capsys):
    def interrupt():
        raise KeyboardInterrupt

    run = begun(tmp_path / "run")
    then(monkeypatch, interrupt)
    assert call("watch", run) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "Detached: the runs go on as before."
    assert not (run / "summary.json").exists()


def test_a_run_that_has_not_begun_is_waited_for_on_request(tmp_path, monkeypatch, capsys):
    run = tmp_path / "runs" / "run"
    assert call("watch", run) == 1
    assert capsys.readouterr().err.endswith("name the folder of a run, or wait for one to begin with --wait.\n")
    then(monkeypatch, lambda: begun(run, 1), lambda: end(run))
    assert call("watch", run, "--wait") == 0
    assert f"Waiting for a run in {run}" in capsys.readouterr().out


def damaged(folder):
    begun(folder)
    (folder / "metrics.jsonl").write_text("{}\n")
    return folder


WRONG = {
    "an empty folder": (lambda path: path.mkdir(), (), "has no run: name"),
    "a file": (lambda path: path.write_text(""), (), "is not a folder: name"),
    "a damaged run": (damaged, (), "is damaged"),
    "an interval": (begun, ("--interval", "0"), "--interval is 0, but must be a positive number of seconds"),
    "a long interval": (begun, ("--interval", "1e10"), r"--interval is 1e\+10, but must be .* at most 86400"),
    "an infinite interval": (begun, ("--interval", "inf"), "--interval is inf, but must be .* at most 86400"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_cannot_be_watched_is_one_sentence(kind, tmp_path, capsys):
    make, flags, sentence = WRONG[kind]
    make(tmp_path / "place")
    assert call("watch", tmp_path / "place", *flags) == 1
    assert re.fullmatch(rf"polyak: [^\n]*{sentence}[^\n]*\.\n", capsys.readouterr().err)


def test_the_view_of_one_run(tmp_path):
    folder = begun(tmp_path / "run", weight_norm=3.0)
    timing = {"seconds": 2.0, "evaluation_seconds": 1.0, "images_per_second": 1500.0}
    (folder / "timings.jsonl").write_text("".join(json.dumps({"epoch": n, **timing}) + "\n" for n in (1, 2)))
    shown = screen(folder)
    assert "ALI-G, seed 0" in shown
    assert "epoch 2 of ?, last change 1 s ago" in shown
    assert "3 s per epoch, 1,500 samples/s, capped 25.0 %" in shown
    assert re.search(r"training loss +0\.01 +█▁", shown)
    assert "stopped?" not in shown
    changed = Watcher(folder).look()[0].changed
    assert "last change 60 s ago: stopped?" in screen(folder, now=changed + 60)


def test_the_view_of_several_runs(tmp_path):
    for number in range(8):
        begun(tmp_path / f"run-{number}", row=f"row {number}")
    finish(tmp_path / "run-0")
    damaged(tmp_path / "run-9")
    shown = screen(tmp_path)
    assert all(f"row {number}, seed 0" in shown for number in range(8))
    assert re.search(r"run-9 .*cannot be read", shown)
    assert "is damaged" in " ".join(shown.split())
    assert "2 of 9 runs are over." in shown
    small = screen(tmp_path, height=8)
    assert "2 of 9 runs are over, 6 not shown." in small
    assert "row 0" not in small
    assert len(small.splitlines()) <= 8


@pytest.mark.parametrize("width", [20, 40, 80])
@pytest.mark.parametrize("several", [False, True])
def test_it_fits_any_terminal_in_any_encoding(several, width, tmp_path):
    for number in range(1 + several):
        begun(tmp_path / str(number), row="a long name of a row: 模型")
    shown = screen(tmp_path if several else tmp_path / "0", width=width, encoding="ascii")
    assert not {letter for letter in shown if letter in watch_view.BLOCKS}


def test_the_letters_of_a_curve():
    assert watch_view.sparkline([1.0, 10.0, 100.0], 8, True, "abc") == "abc"
    assert watch_view.sparkline([1.0, None, float("nan"), 3.0], 4, False, "abc") == "a  c"
    assert watch_view.sparkline([float(n) for n in range(101)], 5, False, "abcde") == "abcde"
    assert watch_view.sparkline([5.0, 5.0], 8, False, "abc") == "aa"
    assert watch_view.sparkline([], 8, False, "abc") == ""
