"""A run that was stopped, by whatever, ends with the bits of one that was not."""

import errno
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lab.runs import ALIG, execute, in_child, run
from polyak_lab.config import run as config
from polyak_lab.errors import LabError
from polyak_lab.runs import checkpoint

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


@pytest.mark.parametrize("kind", ["alig", "sgd-cosine"])
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

    def stop_in_second_epoch(path, this, epochs, config_hash):
        if epochs == 2:
            raise KeyboardInterrupt
        save(path, this, epochs, config_hash)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", stop_in_second_epoch)
        with pytest.raises(KeyboardInterrupt):
            execute(tmp_path / "cut", run())
    assert len((tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()) == 2
    execute(tmp_path / "cut", run())
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


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_by_a_signal(sent, code, tmp_path):
    arguments = "train --data digits --model mlp --optimizer alig --epochs 200 --device cpu --threads 1"
    command = f"{sys.executable} -m polyak_lab {arguments} --out {tmp_path}/run"
    with subprocess.Popen(shlex.split(command), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline().startswith("epoch 1/200: ")
        child.send_signal(sent)
        _, errors = child.communicate(timeout=60)
    assert (child.returncode, errors) == (code, "polyak: stopped; the same command goes on.\n")
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
        assert said is None or ("checkpoint.pt is damaged" in said and "delete it to start this run over" in said)
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
