"""A run that was stopped, by whatever, ends with the bits of one that was not."""

import errno
import json
import os
import pickle
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

from lab.runs import ALIG, ROW, execute, in_child, run
from polyak_lab import progress
from polyak_lab.config import run as config
from polyak_lab.errors import LabError
from polyak_lab.optimizers import OPTIMIZERS
from polyak_lab.recipes.resolve import resolve
from polyak_lab.runs import checkpoint, documents, stored
from polyak_lab.runs import folder as record
from polyak_lab.runs.folder import RunFolder
from polyak_lab.training.loop import train

LONG = {"epochs": 15, "batch_size": 128}
KINDS = {
    "alig": (ALIG, "constant"),
    "smooth-sps": (config.Optimizer("smooth-sps"), "constant"),
    "sgd-cosine": (config.Optimizer("sgd", options={"lr": 0.1, "momentum": 0.9}), "cosine"),
    "adamw": (config.Optimizer("adamw"), "constant"),
}


def ending(path):
    """What must be the same to the bit."""
    state = torch.load(path / "checkpoint.pt", weights_only=True)["state"]
    return (path / "metrics.jsonl").read_bytes(), state["model"]


def assert_same_end(one, other):
    (metrics, weights), (others_metrics, others_weights) = ending(one), ending(other)
    assert metrics == others_metrics
    assert weights.keys() == others_weights.keys()
    assert all(torch.equal(weights[name], others_weights[name]) for name in weights)


def leftovers(path):
    return [entry.name for entry in path.iterdir() if entry.name.startswith(".")]


def whole(folder, kind):
    """Run to the end without a stop; return the folder, what it ran, and how long it took."""
    optimizer, schedule = KINDS[kind]
    wanted = run(optimizer, schedule, augment=True, **LONG)
    path = folder / "whole"
    in_child(folder / "warm", run(optimizer, schedule, epochs=1)).join()
    start = time.monotonic()
    child = in_child(path, wanted)
    child.join()
    assert child.exitcode == 0
    return path, wanted, time.monotonic() - start


def kill_at(moment, path, wanted):
    child = in_child(path, wanted)
    time.sleep(moment)
    child.kill()
    child.join()
    return child.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("kind", ["alig", pytest.param("sgd-cosine", marks=pytest.mark.slow)])
def test_killed_twice(kind, tmp_path):
    expected, wanted, seconds = whole(tmp_path, kind)
    for part in (0.7, 0.4):
        kill_at(seconds * random.uniform(0.2, part), tmp_path / "run", wanted)
    execute(tmp_path / "run", wanted)
    assert_same_end(tmp_path / "run", expected)
    assert not leftovers(tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_20_random_moments(kind, tmp_path):
    expected, wanted, seconds = whole(tmp_path, kind)
    hits = 0
    for number in range(20):
        path = tmp_path / str(number)
        hits += kill_at(random.uniform(0, seconds), path, wanted)
        execute(path, wanted)
        assert_same_end(path, expected)
    assert hits >= 10


def test_stopped_between_metrics_and_checkpoint(tmp_path, monkeypatch):
    expected = execute(tmp_path / "whole", run())
    save = checkpoint.save

    def stop_in_second_epoch(path, session, epochs, *hashes):
        if epochs == 2:
            raise KeyboardInterrupt
        save(path, session, epochs, *hashes)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", stop_in_second_epoch)
        with pytest.raises(KeyboardInterrupt):
            execute(tmp_path / "cut", run())
    assert len((tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()) == 2
    execute(tmp_path / "cut", run())
    assert_same_end(tmp_path / "cut", expected.path)


def test_large_checkpoints_are_written_less_often(tmp_path, monkeypatch):
    """The epochs after the last of them are trained again, to the same bits."""
    expected, epochs = execute(tmp_path / "whole", run(epochs=6)), []
    save, commit = checkpoint.save, RunFolder.commit

    def noted(path, session, epoch, *hashes):
        epochs.append(epoch)
        save(path, session, epoch, *hashes)

    def stopped(folder, *arguments):
        commit(folder, *arguments)
        if len(folder.records) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save", noted)
    monkeypatch.setattr(record, "LARGE", 0)
    monkeypatch.setattr(record, "SHARE", 1e-9)
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "commit", stopped)
        with pytest.raises(KeyboardInterrupt):
            execute(tmp_path / "cut", run(epochs=6))
    assert len((tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()) == 4
    execute(tmp_path / "cut", run(epochs=6))
    assert epochs == [1, 2, 6]  # the first of each start, and the last
    assert_same_end(tmp_path / "cut", expected.path)


@pytest.mark.parametrize("file", ["metrics.jsonl", "timings.jsonl", "checkpoint.pt", "summary.json", "config.json"])
def test_full_disk(file, tmp_path, monkeypatch):
    expected = execute(tmp_path / "whole", run())
    fsync = os.fsync
    writes = []
    fatal = 2 if file in ("metrics.jsonl", "timings.jsonl", "checkpoint.pt") else 1  # in the second epoch

    def full(handle):
        writes.append(Path(f"/proc/self/fd/{handle}").readlink().name)
        if file in writes[-1] and sum(file in name for name in writes) == fatal:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(LabError, match=rf"{file}: No space left on device"):
            execute(tmp_path / "cut", run())
    assert not leftovers(tmp_path / "cut")
    execute(tmp_path / "cut", run())
    assert_same_end(tmp_path / "cut", expected.path)


@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_stopped_by_a_signal(sent, code, tmp_path):
    arguments = "train --data digits --model mlp --optimizer alig --epochs 200 --device cpu --threads 1"
    command = f"{sys.executable} -m polyak_lab {arguments} --out {tmp_path}/run"
    with subprocess.Popen(shlex.split(command), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline().startswith("epoch 1/200: ")
        child.send_signal(sent)
        _, errors = child.communicate(timeout=60)
    assert (child.returncode, errors) == (code, "polyak: stopped; run the same command again to resume.\n")
    assert 1 <= len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) < 200
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["epochs"] >= 1


def test_a_flipped_byte_is_refused_or_does_not_matter(tmp_path):
    """Every byte matters but those between the records of the archive."""
    folder = execute(tmp_path, run(epochs=1))
    (tmp_path / "summary.json").unlink()
    stored = tmp_path / "checkpoint.pt"
    content = stored.read_bytes()
    refused = 0
    for part in range(1, 20):
        flipped = bytearray(content)
        flipped[part * len(content) // 20] ^= 0xFF
        stored.write_bytes(flipped)
        said = attempt(tmp_path, folder.records)
        refused += said is not None
        assert said is None or ("checkpoint.pt is damaged" in said and "delete it to train the run again" in said)
    assert refused >= 15


def attempt(path, records):
    """Go on from a checkpoint; return why it was refused, or check that it was as good as before."""
    try:
        folder = execute(path, run(epochs=1))
    except LabError as error:
        return str(error)
    (path / "summary.json").unlink()
    assert folder.records == records


def test_cut_checkpoint_is_refused(tmp_path):
    execute(tmp_path, run(epochs=1))
    (tmp_path / "summary.json").unlink()
    (tmp_path / "checkpoint.pt").write_bytes((tmp_path / "checkpoint.pt").read_bytes()[:1000])
    with pytest.raises(LabError, match="is damaged"):
        execute(tmp_path, run(epochs=1))


def test_checkpoint_of_another_run_is_refused(tmp_path):
    execute(tmp_path / "one", run(epochs=1))
    execute(tmp_path / "other", run(epochs=1, seed=1))
    (tmp_path / "one" / "summary.json").unlink()
    (tmp_path / "other" / "checkpoint.pt").replace(tmp_path / "one" / "checkpoint.pt")
    with pytest.raises(LabError, match="belongs to another run"):
        execute(tmp_path / "one", run(epochs=1))


@pytest.mark.parametrize("part", [1, 20, 0.5, -1])
@pytest.mark.parametrize("name", ["metrics.jsonl", "timings.jsonl"])
def test_killed_while_a_line_was_appended(name, part, tmp_path, monkeypatch):
    """The last line is there in part, as after a kill or a power cut, and the checkpoint knows nothing of it."""
    expected = execute(tmp_path / "whole", run())
    append = record.append_line

    def stop_in_a_line(path, line):
        if path.name == name and json.loads(line)["epoch"] == 2:
            length = int(part * len(line)) if isinstance(part, float) else part
            with path.open("a") as file:
                file.write(line[:length])
            raise KeyboardInterrupt
        append(path, line)

    with monkeypatch.context() as patch:
        patch.setattr(record, "append_line", stop_in_a_line)
        with pytest.raises(KeyboardInterrupt):
            execute(tmp_path / "cut", run())
    assert len(stored.load_run(tmp_path / "cut").records) == (1 if name == "metrics.jsonl" else 2)
    execute(tmp_path / "cut", run())
    assert_same_end(tmp_path / "cut", expected.path)
    assert len((tmp_path / "cut" / "timings.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize("rest", [b"\x00" * 100, b"\xff\xfe\n", b"{}\n{}\n"])
def test_what_a_power_cut_left_behind_the_last_line_is_dropped(rest, tmp_path):
    expected = execute(tmp_path / "whole", run())
    stopped_after(1, tmp_path / "cut")
    for name in ("metrics.jsonl", "timings.jsonl"):
        with (tmp_path / "cut" / name).open("ab") as file:
            file.write(rest)
    execute(tmp_path / "cut", run())
    assert_same_end(tmp_path / "cut", expected.path)


def stopped_after(epochs, path, wanted=None):
    """Run so many epochs, and stop."""

    class Stop(progress.Progress):
        def epoch_done(self, record, timing):
            if record["epoch"] == epochs:
                raise KeyboardInterrupt

    resolved = resolve(run() if wanted is None else wanted)
    with pytest.raises(KeyboardInterrupt):
        train(resolved, RunFolder(path, resolved, ROW), Stop(Console(quiet=True), epochs=False))


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "alig-plus"])
def test_every_optimizer_continues_with_its_state(name, tmp_path):
    wanted = run(config.Optimizer(name), epochs=2, max_batches=2)
    expected = execute(tmp_path / "whole", wanted)
    stopped_after(1, tmp_path / "cut", wanted)
    execute(tmp_path / "cut", wanted)
    assert_same_end(tmp_path / "cut", expected.path)


@pytest.mark.parametrize("name", ["adamw", "momo-adam", "ngn-md"])
def test_options_that_are_written_out_continue_a_run_with_the_same_defaults(name, tmp_path):
    """The default betas are a tuple, those of a recipe a list."""
    default, written = (
        run(config.Optimizer(name, options=options), epochs=2, max_batches=2)
        for options in ({}, {"betas": [0.9, 0.999]})
    )
    for number, (first, second) in enumerate([(default, written), (written, default)]):
        stopped_after(1, tmp_path / str(number), first)
        execute(tmp_path / str(number), second)
    assert_same_end(tmp_path / "0", tmp_path / "1")


def test_a_folder_can_be_sent_to_another_process(tmp_path):
    folder = RunFolder(tmp_path, resolve(run()), ROW)
    assert pickle.loads(pickle.dumps(folder)).hash == folder.hash


def test_an_epoch_costs_no_more_after_many(tmp_path, monkeypatch):
    """Counted in bytes: what is written of the lines does not grow."""
    written = []
    append = record.append_line
    monkeypatch.setattr(record, "append_line", lambda path, line: (written.append(len(line)), append(path, line)))
    folder = execute(tmp_path, run(epochs=12))
    size = sum((tmp_path / name).stat().st_size for name in ("metrics.jsonl", "timings.jsonl"))
    assert (len(written), sum(written)) == (24, size)
    assert (tmp_path / "metrics.jsonl").read_text() == documents.dump_lines(folder.records)


def test_a_changed_line_of_a_stopped_run_is_refused(tmp_path):
    stopped_after(2, tmp_path)
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text().replace('"lr": 1.0', '"lr": 1.5', 1))
    with pytest.raises(LabError, match=r"metrics\.jsonl was changed after its checkpoint was stored"):
        execute(tmp_path, run())


@pytest.mark.parametrize("damage", ["", "{}", "nonsense", "[]\n", '{"starts": [{"threads": -1}]}'])
@pytest.mark.parametrize("name", ["environment.json", "timings.jsonl"])
def test_a_damaged_clock_or_log_file_costs_no_run(name, damage, tmp_path):
    expected = execute(tmp_path / "whole", run())
    stopped_after(1, tmp_path / "cut")
    for path in (tmp_path / "cut", tmp_path / "whole"):
        (path / name).write_text(damage)
        execute(path, run())
        assert stored.load_run(path).finished
    assert_same_end(tmp_path / "cut", expected.path)
    assert len(documents.read_timings(tmp_path / "cut" / "timings.jsonl")) == 3 or name == "environment.json"


@pytest.mark.parametrize("damage", ["first", "last", "cut", "folder of a link"])
def test_the_times_that_can_be_read_are_kept(damage, tmp_path, capsys):
    stopped_after(2, tmp_path)
    path = tmp_path / "timings.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    texts = {"first": ["{]\n", lines[1]], "last": [lines[0], "\0\n"], "cut": [lines[0], lines[1][:-5]]}
    path.unlink()
    if damage in texts:
        path.write_text("".join(texts[damage]))
    else:
        path.symlink_to("elsewhere/timings.jsonl")
    execute(tmp_path, run())
    lost = 1 if damage in texts else 2
    assert capsys.readouterr().err == (
        f"polyak: {path} has no times of {lost} of 2 epochs: the time of this run is not known.\n"
    )
    kept = path.read_text().splitlines(keepends=True)
    assert (kept[0] == lines[0], kept[1] == lines[1], len(kept)) == (damage in ("last", "cut"), damage == "first", 3)
    assert stored.read_times(stored.load_run(tmp_path)) is None


@pytest.mark.parametrize("change", [None, "a line less", "no lines", "other seconds", "other evaluation", "no file"])
def test_the_time_of_a_finished_run_is_that_of_its_summary_or_unknown(change, tmp_path):
    execute(tmp_path, run(epochs=2))
    path = tmp_path / "timings.jsonl"
    text = path.read_text()
    path.write_text(
        {
            "a line less": text.partition("\n")[2].replace('"epoch": 2', '"epoch": 1'),
            "no lines": "",
            "other seconds": text.replace('"seconds": ', '"seconds": 1', 1),
            "other evaluation": text.replace('"evaluation_seconds": ', '"evaluation_seconds": 1', 1),
        }.get(change, text)
    )
    if change == "no file":
        path.unlink()
    assert (stored.read_times(stored.load_run(tmp_path)) is None) == (change is not None)


def test_a_damaged_log_of_a_stopped_run_that_takes_its_threads_from_it(tmp_path):
    resolved = resolve(run(threads=None))
    folder = RunFolder(tmp_path, resolved, ROW)
    folder.prepare()
    (tmp_path / "environment.json").write_text("{")
    with pytest.raises(LabError, match=r"environment\.json is damaged .* delete only this file"):
        train(resolved, folder, progress.Progress(Console(quiet=True), epochs=False))


def test_missing_lines_are_refused(tmp_path):
    execute(tmp_path, run(epochs=2))
    (tmp_path / "summary.json").unlink()
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(LabError, match=r"has 0 lines, but the checkpoint has 2 epochs"):
        execute(tmp_path, run(epochs=2))


def test_two_processes_on_one_folder(tmp_path):
    child = in_child(tmp_path / "run", run(epochs=1000))
    try:
        while not (tmp_path / "run" / "metrics.jsonl").exists():
            time.sleep(0.01)
        with pytest.raises(LabError, match="Another process is at work"):
            execute(tmp_path / "run", run(epochs=1000))
    finally:
        child.kill()
        child.join()
