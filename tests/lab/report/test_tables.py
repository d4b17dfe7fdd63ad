"""Tables and pages from stored records."""

import csv
import errno
import json
import os
import re
import shutil
from pathlib import Path

import pytest

from lab.runs import call
from polyak_lab.config.run import content_hash
from polyak_lab.errors import LabError
from polyak_lab.report import page as report
from polyak_lab.report import table
from polyak_lab.runs import stored

TABLE = {
    "ALI-G": ("alig", 94.5, [0.90, 0.92, 0.97], 0.5),
    "SGD <b>& cosine": ("sgd", None, [0.80, 0.80], None),
}


def store(folder, row, optimizer, paper, seed, accuracy, capped, finished=True, options=None, data=None, **numbers):
    """Write what a run of three epochs leaves behind."""
    folder.mkdir(parents=True)
    seeds = {"seed": seed, "shuffle_seed": seed + 100}
    run = {"optimizer": {"name": optimizer, "options": options or {}}, "training": seeds}
    run |= {} if data is None else {"data": data}
    label = {"row": row, "table": "t", "position": list(TABLE).index(row) if row in TABLE else 9, "paper": paper}
    (folder / "config.json").write_text(json.dumps({"hash": content_hash(run), "label": label, "run": run}))
    record = {"train_loss": 0.1, "test_loss": 0.2, "test_accuracy": accuracy, "step_size": 0.05, "lr": 0.1}
    record |= {"capped": capped, **numbers}
    lines = [json.dumps({"epoch": epoch, **record, "train_loss": 10.0**-epoch}) for epoch in (1, 2, 3)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    if finished:
        finish(folder)


def finish(folder):
    """Write the summary of what stands in the other files."""
    config = json.loads((folder / "config.json").read_text())
    final = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    clock = folder / "timings.jsonl"
    times = [json.loads(line) for line in clock.read_text().splitlines()] if clock.exists() else []
    seconds = sum(time["seconds"] + time["evaluation_seconds"] for time in times) or 1.0
    (folder / "summary.json").write_text(json.dumps({"hash": config["hash"], "seconds": seconds, "final": final}))


@pytest.fixture
def runs(tmp_path):
    for row, (optimizer, paper, accuracies, capped) in TABLE.items():
        for seed, accuracy in enumerate(accuracies):
            store(tmp_path / "runs" / optimizer / f"seed-{seed}", row, optimizer, paper, seed, accuracy, capped)
    return tmp_path / "runs"


def test_mean_deviation_count_paper_difference(runs):
    store(runs / "sgd" / "seed-2", "SGD <b>& cosine", "sgd", None, 2, 0.1, None, finished=False)
    head, lines = table.cells(table.groups(stored.find_runs([runs])))
    assert head == ["row", "test accuracy, %", "train loss", "capped steps", "n", "paper", "difference"]
    assert lines == [
        ["ALI-G", "93.00 ± 3.61", "1.0e-03 ± 0.0e+00", "50.0 %", "3", "94.5", "-1.50"],
        ["SGD <b>& cosine", "80.00 ± 0.00", "1.0e-03 ± 0.0e+00", "–", "2 of 3", "–", "–"],
    ]


@pytest.mark.parametrize(("width", "paper"), [(80, None), (97, 93.5), (200, 93.5)])
def test_a_table_keeps_its_borders_and_its_numbers_in_a_narrow_terminal(tmp_path, width, paper, monkeypatch, capsys):
    row = "CIFAR-10, ALI-G with momentum 0.9 and a ball of radius 100"
    for seed in (0, 1):
        store(tmp_path / f"{seed}", row, "alig", paper, seed, 0.9, 0.5, test_accuracy_augmented=0.89)
    monkeypatch.setenv("COLUMNS", str(width))
    assert call("table", tmp_path) == 0
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert {len(line) for line in lines if line[0] in "┏┃┡│└"} == {len(lines[0])}
    assert len(lines[0]) <= width
    assert {line[-1] for line in lines} <= set("┓┃┩│┘")
    for number in ("90.00 ± 0.00", "89.00 ± 0.00", "1.0e-03 ± 0.0e+00", *(["-4.50"] if paper else [])):
        assert number in printed


def test_columns_nobody_fills_are_left_out(runs):
    head, (line,) = table.cells(table.groups(stored.find_runs([runs / "sgd"])))
    assert head == ["row", "test accuracy, %", "train loss", "n"]
    assert line[-1] == "2"


@pytest.mark.parametrize(
    ("shares", "written"),
    [
        ((1.0, 1.0, 1.0), "100.0 % (effectively SGD)"),
        ((1.0, 1.0, 0.95), "98.3 % (effectively SGD)"),
        ((1.0, 1.0, 0.93), "97.7 %"),
        ((1.0, 0.0, 0.0), "33.3 %"),
        ((0.0, 0.0, 0.0), "0.0 %"),
    ],
)
def test_the_share_of_capped_steps_is_that_of_the_whole_run(shares, written, tmp_path):
    store(tmp_path / "run", "ALI-G", "alig", None, 0, 0.9, None)
    metrics = tmp_path / "run" / "metrics.jsonl"
    lines = map(json.loads, metrics.read_text().splitlines())
    told = [json.dumps(line | {"capped": share}) for line, share in zip(lines, shares, strict=True)]
    metrics.write_text("\n".join(told) + "\n")
    finish(tmp_path / "run")
    rows = table.groups(stored.find_runs([tmp_path]))
    head, (line,) = table.cells(rows)
    assert dict(zip(head, line, strict=True))["capped steps"] == written
    report.write(tmp_path / "report.html", rows, "t", "n")
    assert written in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_weight_norm_stands_beside_a_ball(tmp_path):
    store(tmp_path / "a", "ALI-G", "alig", None, 0, 0.9, 0.1, weight_norm=19.96)
    assert "weight norm" not in table.cells(table.groups(stored.find_runs([tmp_path])))[0]
    stored_config = json.loads((tmp_path / "a" / "config.json").read_text())
    stored_config["run"]["optimizer"]["l2_ball"] = 20.0
    stored_config["hash"] = content_hash(stored_config["run"])
    (tmp_path / "a" / "config.json").write_text(json.dumps(stored_config))
    finish(tmp_path / "a")
    head, (line,) = table.cells(table.groups(stored.find_runs([tmp_path])))
    assert dict(zip(head, line, strict=True))["weight norm"] == "20.0"


COPIES = {
    "absolute": lambda runs: ["runs", runs],
    "twice": lambda runs: ["runs", "runs", "./runs"],
    "below": lambda runs: ["runs", runs / "alig", runs / "alig" / "seed-0"],
    "copy": lambda runs: shutil.copytree(runs / "alig", runs / "copy") and ["runs"],
    "copy elsewhere": lambda runs: ["runs", shutil.copytree(runs, runs.parent / "copy")],
    "link": lambda runs: (runs.parent / "link").symlink_to("runs") or ["runs", "link"],
    "link inside": lambda runs: (runs / "link").symlink_to("alig") or ["runs"],
    "circle": lambda runs: (runs / "link").symlink_to("..") or ["runs"],
    "linked copy": lambda runs: (
        (shutil.copytree(runs, runs.parent / "a") and (runs / "b").symlink_to("../a")) or ["runs"]
    ),
}


@pytest.mark.parametrize("case", COPIES)
def test_a_run_counts_once(case, runs, monkeypatch, capsys):
    monkeypatch.chdir(runs.parent)
    expected = table.cells(table.groups(stored.find_runs([runs])))
    paths = COPIES[case](runs)
    said = []
    assert table.cells(table.groups(stored.find_runs(map(Path, paths), said.append))) == expected
    assert call("table", *paths, "--format", "csv") == 0
    printed = capsys.readouterr()
    assert next(csv.DictReader(printed.out.splitlines()))["n"] == "3"
    if case not in ("twice", "link inside", "circle"):  # the same folder, which is seen once
        assert "hold the same run, which counts once" in str(said[0])
        assert re.fullmatch(r"polyak: [^\n]+\n", printed.err)


def test_of_two_copies_the_one_that_came_furthest_counts(runs):
    shutil.copytree(runs / "alig", runs / "a copy")
    (runs / "a copy" / "seed-0" / "summary.json").unlink()
    head, lines = table.cells(table.groups(stored.find_runs([runs])))
    assert dict(zip(head, lines[0], strict=True))["n"] == "3"


def test_a_linked_run_folder_is_found(runs, tmp_path):
    (tmp_path / "chosen").mkdir()
    (tmp_path / "chosen" / "one").symlink_to(runs / "alig" / "seed-1")
    assert [run.path.name for run in stored.find_runs([tmp_path / "chosen"])] == ["one"]


def test_a_folder_that_cannot_be_read_is_said(runs, monkeypatch, capsys):
    scandir = os.scandir

    def refuse(path="."):
        if Path(os.fspath(path)).name == "sgd":
            raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert call("table", runs) == 0
    assert capsys.readouterr().err == f"polyak: Cannot read {runs / 'sgd'}: Permission denied.\n"
    with pytest.raises(LabError, match="Cannot read"):
        stored.find_runs([runs])


def test_a_table_without_runs_says_what_it_looked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call("table") == 1
    assert "polyak: runs is not a folder: name one that holds runs" in capsys.readouterr().err
    (tmp_path / "runs").mkdir()
    assert call("table") == 1
    assert (
        "polyak: No runs in runs: no folder there, at any depth, has a config.json or packed runs (runs.jsonl)."
        in capsys.readouterr().err
    )


def test_runs_of_different_settings_are_not_averaged(runs):
    store(runs / "other", "ALI-G", "alig", None, 3, 0.5, 0.0)
    config = json.loads((runs / "other" / "config.json").read_text())
    config["run"]["optimizer"]["lr"] = 3.0
    config["hash"] = content_hash(config["run"])
    (runs / "other" / "config.json").write_text(json.dumps(config))
    finish(runs / "other")
    _, lines = table.cells(table.groups(stored.find_runs([runs])))
    names = [line[0] for line in lines]
    assert len(set(names)) == 3
    assert sum(re.fullmatch(r"ALI-G \[[0-9a-f]{6}\]", name) is not None for name in names) == 2


def test_the_papers_number_is_compared_with_its_own_protocol(tmp_path):
    store(tmp_path / "run", "ALI-G", "alig", 90.0, 0, 0.95, 0.0, test_accuracy_augmented=0.91)
    head, (line,) = table.cells(table.groups(stored.find_runs([tmp_path])))
    assert head[1:3] == ["test accuracy, %", "accuracy on augmented test images, %"]
    assert line[1:3] == ["95.00", "91.00"]
    assert line[-1] == "+1.00"


def test_losses_stand_in_for_accuracies(tmp_path):
    store(tmp_path / "run", "ALI-G", "alig", None, 0, None, 0.0)
    head, (line,) = table.cells(table.groups(stored.find_runs([tmp_path])))
    assert (head[1], line[1]) == ("test loss", "2.00e-01")


def test_seeds_that_diverged_have_no_mean(tmp_path):
    for seed, loss in enumerate((0.5, "nan", "inf")):
        folder = tmp_path / f"seed-{seed}"
        store(folder, "SGD", "sgd", None, seed, 0.1, None)
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        last = json.loads(lines[-1]) | {"train_loss": loss}
        (folder / "metrics.jsonl").write_text("\n".join([*lines[:-1], json.dumps(last)]) + "\n")
        finish(folder)
    head, (line,) = table.cells(table.groups(stored.find_runs([tmp_path])))
    assert dict(zip(head, line, strict=True)) == {
        "row": "SGD",
        "test accuracy, %": "10.00 ± 0.00",
        "train loss": "not finite",
        "n": "3",
    }


def test_a_run_that_diverged(tmp_path):
    store(tmp_path / "run", "ALI-G", "alig", None, 0, 0.1, 0.0, step_size="nan", weight_norm="inf")
    rows = table.groups(stored.find_runs([tmp_path]))
    assert table.cells(rows)[1][0][1] == "10.00"
    report.write(tmp_path / "report.html", rows, "t", "n")


@pytest.mark.parametrize(("form", "expected"), [("markdown", "| ALI-G | 93.00 ± 3.61 |"), ("csv", "ALI-G,93.0,3.6055")])
def test_other_forms(form, expected, runs, capsys):
    assert call("table", runs, "--format", form) == 0
    assert expected in capsys.readouterr().out


def test_terminal(runs, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "120")
    assert call("table", runs) == 0
    printed = capsys.readouterr().out
    assert "ALI-G" in printed
    assert "SGD <b>& cosine" in printed


@pytest.mark.parametrize("name", ["empty", "none"])
def test_folders_without_runs(name, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert call("table", tmp_path / name) == 1
    assert re.fullmatch(r"polyak: [^\n]+\n", capsys.readouterr().err)


def test_a_folder_that_only_looks_like_a_run(tmp_path):
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(LabError, match=r"config\.json is damaged \(it is not a JSON object\)"):
        stored.find_runs([tmp_path])
