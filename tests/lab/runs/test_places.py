"""Where runs may lie: folders that may not be entered, names that are too long, disks without locks, no home."""

import ctypes
import errno
import fcntl
import json
import os
import re
import subprocess
import sys

import pytest

from lab import campaign
from lab.campaign import Said
from lab.report.test_tables import store
from lab.runs import call, execute, run
from polyak_lab import data
from polyak_lab.errors import LabError
from polyak_lab.runs import documents

SEVERAL = """
import json, os, sys
from lab.campaign import Said
for line in json.load(sys.stdin):
    for path, mode in line["modes"].items():
        os.chmod(path, mode)
    if line["gone"]:
        os.mkdir(line["gone"]); os.chdir(line["gone"]); os.rmdir(line["gone"])
    said = Said(*line["command"])
    for path in line["modes"]:
        os.chmod(path, 0o755)
    print(json.dumps([said.code, said.out, said.err, said.traceback]))
"""
DAC_OVERRIDE, DAC_READ_SEARCH, PR_CAPBSET_DROP = 1, 2, 24


def obey_modes():
    """Let file modes hold for root as well."""
    for capability in (DAC_OVERRIDE, DAC_READ_SEARCH):
        ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


def several(lines, **environment):
    """Run commands in one process for which file modes hold; return what each said."""
    done = subprocess.run(
        [sys.executable, "-c", SEVERAL],
        input=json.dumps([{"modes": {}, "gone": None, **line} for line in lines]),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        preexec_fn=obey_modes,
        timeout=300,
    )
    assert done.stderr == ""
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_folders_that_may_not_be_read_entered_or_written(tmp_path):
    runs, lines, refused = tmp_path / "runs", [], []
    store(runs / "seed-0", "ALI-G", "alig", None, 0, 0.9, 0.5)
    recipe = str(campaign.run_command(tmp_path / "recipe")[1])
    for mode in (0o000, 0o111, 0o333, 0o444, 0o555):
        out = tmp_path / f"out-{mode:o}"
        out.mkdir()
        lines.append({"modes": {str(out): mode}, "command": ["run", recipe, "--out", str(out)]})
        lines.append({"modes": {str(out): mode}, "command": ["table", str(runs), "--report", str(out / "page.html")]})
        refused += [str(out), str(out) if mode != 0o333 else ""]  # which may be written to
    said = several(lines)
    for line, path, (code, _, errors, traceback) in zip(lines, refused, said, strict=True):
        assert traceback == "", line
        assert code == (1 if path else 0), line
        assert path in errors


def test_runs_that_may_not_be_read(tmp_path):
    runs = tmp_path / "runs"
    store(runs / "seed-0", "ALI-G", "alig", None, 0, 0.9, 0.5)
    modes = (0o000, 0o111, 0o333, 0o444, 0o555)
    said = several([{"modes": {str(runs / "seed-0"): mode}, "command": ["table", str(runs)]} for mode in modes])
    assert [code for code, *_ in said][:1] + [code for code, *_ in said][-1:] == [1, 0]
    assert not any(traceback for *_, traceback in said)


def test_what_lies_in_a_folder_that_may_not_be_entered(tmp_path):
    folder = tmp_path / "closed"
    store(folder / "runs" / "seed-0", "ALI-G", "alig", None, 0, 0.9, 0.5)
    runs, packs = str(folder / "runs"), str(folder / "runs.jsonl")
    commands = [["watch", runs], ["watch", runs, "--wait"], ["table", packs], ["pack", packs, "--out", str(tmp_path)]]
    said = several([{"modes": {str(folder): 0o000}, "command": command} for command in commands])
    for code, _, errors, traceback in said:
        assert (code, traceback) == (1, "")
        assert re.fullmatch(r"polyak: Cannot read [^\n]+: Permission denied\.\n", errors)


def test_a_locale_whose_file_names_lack_letters(tmp_path):
    runs, recipe = tmp_path / "runs", campaign.run_command(tmp_path / "recipe")[1]
    store(runs / "seed-0", "ALI-G", "alig", None, 0, 0.9, 0.5)
    recipe.write_text(recipe.read_text().replace("ALI-G", "Größe"), encoding="utf-8")
    page, picture = (tmp_path / os.fsdecode("größe".encode() + ending) for ending in (b".html", b".svg"))
    lines = [
        ["report", str(runs), "-o", spelled_in_ascii(page)],
        ["table", str(runs), "--plot-loss", spelled_in_ascii(picture)],
        ["run", str(recipe), "--out", str(tmp_path / "out")],
    ]
    ascii_alone = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    said = several([{"command": line} for line in lines], **ascii_alone)
    assert [(code, traceback) for code, _, _, traceback in said] == [(0, ""), (0, ""), (1, "")]
    assert "file names of this locale (ascii) cannot hold 'öß'; set PYTHONUTF8=1." in said[-1][2]
    assert page.stat().st_size
    assert picture.stat().st_size


def spelled_in_ascii(path):
    """Return what a process whose locale is ASCII makes of a path of its command line."""
    return os.fsencode(path).decode("ascii", "surrogateescape")


def test_a_working_directory_that_is_deleted(tmp_path):
    runs, gone = tmp_path / "runs", tmp_path / "gone"
    store(runs / "seed-0", "ALI-G", "alig", None, 0, 0.9, 0.5)
    recipe = str(campaign.run_command(tmp_path / "recipe")[1])
    train = ["train", "--data", "digits", "--model", "logistic", "--optimizer", "sgd", "--epochs", "1"]
    commands = [["table", "runs"], ["table", str(runs)], ["run", recipe], [*train, "--device", "cpu"], ["data", "list"]]
    said = several([{"gone": str(gone), "command": command} for command in commands])
    assert [code for code, *_ in said] == [1, 0, 1, 1, 0]
    assert not any(traceback for *_, traceback in said)
    assert all("No such file or directory" in errors or "not a folder" in errors for code, _, errors, _ in said if code)


@pytest.mark.parametrize("length", [255, 256, 5000])
def test_names_that_are_too_long(length, tmp_path):
    name = "x" * length
    store(tmp_path / "runs", "ALI-G", "alig", None, 0, 0.9, 0.5)
    recipe = campaign.run_command(tmp_path / "recipe")[1]
    said = [
        Said("table", tmp_path / name),
        Said("table", tmp_path / "runs", "--report", tmp_path / f"{name[:-5]}.html"),
        Said("table", tmp_path / "runs", "--plot-loss", tmp_path / f"{name[:-4]}.png"),
        Said("table", tmp_path / f"{name[:-6]}.jsonl"),
        Said("compare", tmp_path / f"{name[:-6]}.jsonl", tmp_path / "runs"),
        Said("pack", tmp_path / f"{name[:-6]}.jsonl", "--out", tmp_path),
        Said("watch", tmp_path / name),
        Said("run", tmp_path / name),
        Said("run", recipe, "--smoke", "--out", tmp_path / name / name),
    ]
    assert [one.code for one in said] == ([1, 0, 0, 1, 1, 1, 1, 1, 0] if length <= 255 else [1] * 9)
    assert not any(one.traceback for one in said)


@pytest.mark.parametrize("reason", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EBADF])
def test_a_file_system_without_locks(reason, tmp_path, monkeypatch):
    def flock(handle, how):
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(fcntl, "flock", flock)
    assert execute(tmp_path / "run", run(epochs=1)).finished


def test_a_lock_that_fails(tmp_path, monkeypatch):
    def flock(handle, how):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(LabError, match=r"Cannot lock .*: Input/output error\."):
        execute(tmp_path / "run", run(epochs=1))


def test_no_home_directory(monkeypatch, capsys):
    monkeypatch.delenv("POLYAK_DATA", raising=False)
    monkeypatch.setenv("COLUMNS", "300")

    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("pathlib.Path.home", home)
    assert len(data.load("digits").train.targets) == 1437
    assert call("data", "list") == 0
    assert call("data", "check", "cifar10") == 1
    said = capsys.readouterr()
    assert "set POLYAK_DATA" in said.out
    assert re.fullmatch(r"polyak: There is no home directory: set POLYAK_DATA [^\n]+\n", said.err)


def test_names_that_are_not_utf_8(tmp_path):
    odd = tmp_path / os.fsdecode(b"n\xff")
    store(odd / "seed-0", "ALI-G", "alig", None, 0, 0.9, 0.5)
    page, picture = odd / os.fsdecode(b"p\xfe.html"), tmp_path / os.fsdecode(b"l\xfe.svg")
    said = [
        Said("table", odd, "--format", "csv-seeds"),
        Said("report", odd, "-o", page),
        Said("report", tmp_path, "-o", tmp_path / "page.html"),
        Said("table", odd, "--plot-loss", picture),
        Said("table", odd / os.fsdecode(b"\xff")),
    ]
    assert [(one.code, one.traceback) for one in said] == [(0, "")] * 4 + [(1, "")]
    assert 'href="./seed-0/config.json"' in page.read_text(encoding="utf-8")
    assert 'href="./n%FF/seed-0/config.json"' in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert picture.stat().st_size


NOT_UTF8 = os.fsdecode(b"caf\xe9")
TINY = ("--epochs", 1, "--max-batches", 1, "--device", "cpu", "--threads", 1)


def test_a_recipe_whose_name_is_not_utf8(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    recipe = tmp_path / f"{NOT_UTF8}.toml"
    recipe.write_text(
        '[defaults]\ndata = "digits"\nmodel = "logistic"\n'
        'training = { epochs = 1, device = "cpu", threads = 1 }\n'
        '[[row]]\nname = "SGD"\noptimizer = { name = "sgd", lr = 0.1 }\n'
    )
    for _ in range(2):
        assert call("run", recipe, "--report") == 0
    said, errors = capsys.readouterr()
    assert (said.count("\\udce9"), errors) == (4, "")  # a title and a path each
    assert "1 of 1 run was finished before." in said


def test_a_command_that_is_not_utf8_is_stored(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["polyak", "train", "--out", NOT_UTF8])
    out = tmp_path / NOT_UTF8
    assert call("train", "--data", "digits", "--model", "logistic", "--optimizer", "alig", *TINY, "--out", out) == 0
    (start,) = documents.read_starts(out / "environment.json")
    assert start["command"] == ["polyak", "train", "--out", "caf\\udce9"]


def test_data_whose_path_is_not_utf8_are_refused_before_anything_trains(tmp_path, capsys):
    (tmp_path / NOT_UTF8).write_text("some text to read " * 1000)
    flags = ("--data", "text", "--root", tmp_path / NOT_UTF8, "--context", 16)
    out = tmp_path / "run"
    assert call("train", *flags, "--model", "gpt-small", "--optimizer", "alig", "--lr", 1, *TINY, "--out", out) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("polyak: data.root is ")
    assert line.endswith("whose bytes are not UTF-8: rename that file or folder.")
    assert not out.exists()
