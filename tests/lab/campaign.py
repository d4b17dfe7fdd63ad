"""Faults for the fault campaign: where they strike, and what must be as if they had not."""

import contextlib
import io
import itertools
import multiprocessing
import os
import re
import resource
import signal
import sys
import traceback
from collections import Counter
from pathlib import Path

import torch

from lab.runs import call

RECIPE = """
title = "A table"
seeds = [0]
[defaults]
data = "digits"
model = "logistic"
training = { epochs = 3, batch_size = 512, device = "cpu", threads = 1 }
[[row]]
name = "ALI-G"
optimizer = { name = "alig", lr = 1.0, momentum = 0.9, l2_ball = 20.0 }
"""
RUN = Path("ali-g", "seed-0")
WRITES = {"os.rename", "os.remove", "os.mkdir", "os.truncate", "os.chmod", "os.chown"}
TORN = 7
"""Bytes that a write cut short lacks at its end."""


class Said:
    """What a command printed, its exit code, and the traceback if it ended in one."""

    def __init__(self, *arguments):
        out, err = io.StringIO(), io.StringIO()
        self.traceback = ""
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                self.code = call(*arguments)
            except BaseException:
                self.code, self.traceback = 70, traceback.format_exc()
        self.out, self.err = out.getvalue(), err.getvalue()
        if "Traceback" in self.err or not re.fullmatch(r"(polyak: [^\n]+\n)*", self.err):
            self.traceback = self.traceback or self.err

    def silent(self):
        return self.code == 0 and not self.err


class Counts(Counter):
    """What a part of the campaign came to."""

    def check(self, what):
        assert not self["tracebacks"], f"{what}: {self}"
        assert not self["silent differences"], f"{what}: {self}"


def run_command(folder):
    recipe = folder.parent / f"{folder.name}.toml"
    recipe.write_text(RECIPE)
    return ("run", recipe, "--out", folder)


def ending(folder, with_weights=True):
    """What must be the same to the bit."""
    lines = (folder / RUN / "metrics.jsonl").read_bytes()
    if not with_weights:
        return lines, {}
    weights = torch.load(folder / RUN / "checkpoint.pt", weights_only=True)["state"]["model"]
    return lines, {name: value.tolist() for name, value in weights.items()}


def shown(folder):
    return Said("table", folder, "--format", "csv").out


def leftovers(folder):
    return [entry for entry in folder.rglob(".*") if entry.name.endswith(".tmp")]


def in_child(target, *arguments):
    """Run a function in a process of its own that has torch already; return its exit code."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "lab.runs", "sklearn"])
    child = context.Process(target=target, args=arguments)
    child.start()
    child.join()
    return child.exitcode


def quiet_call(*arguments):
    with Path(os.devnull).open("w") as null, contextlib.redirect_stdout(null), contextlib.redirect_stderr(null):
        sys.exit(call(*arguments))


def count_operations(folder, place):
    """Run to the end and store how many file operations that took."""
    operations = _at_every_operation(folder, lambda number, handle: None)
    with contextlib.suppress(SystemExit):
        quiet_call(*run_command(folder))
    place.write_text(str(next(operations)))


def die_at(folder, fatal):
    """Run until the file operation of that number, which is cut short."""

    def strike(number, handle):
        if number == fatal:
            if handle is not None:
                os.ftruncate(handle, max(os.fstat(handle).st_size - TORN, 0))
            os.kill(os.getpid(), signal.SIGKILL)

    _at_every_operation(folder, strike)
    quiet_call(*run_command(folder))


def _at_every_operation(folder, strike):
    numbers, busy, fsync = itertools.count(), [], os.fsync

    def note(handle=None):
        if not busy:
            busy.append(1)
            strike(next(numbers), handle)
            busy.pop()

    def hook(event, arguments):
        if event == "open":
            path, _, flags = arguments
            if flags & (os.O_WRONLY | os.O_RDWR) and str(path).startswith(str(folder)):
                note()
        elif event in WRITES and (isinstance(arguments[0], int) or str(arguments[0]).startswith(str(folder))):
            note()

    def noted_fsync(handle):
        note(handle)
        fsync(handle)
        note()

    sys.addaudithook(hook)
    os.fsync = noted_fsync
    return numbers


@contextlib.contextmanager
def largest_file(size):
    """Let no file grow beyond a size, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def damage(content, kind, place, amount):
    """Flip a bit, cut, zero or insert; `place` and `amount` are fractions."""
    at = int(place * len(content))
    length = 1 + int(amount * 40)
    if kind == "flip":
        return content[:at] + bytes([content[at] ^ 1 << length % 8]) + content[at + 1 :]
    if kind == "cut":
        return content[:at]
    if kind == "zero":
        return content[:at] + bytes(min(length, len(content) - at)) + content[at + length :]
    if kind == "lose":
        return content[:at] + content[at + length :]
    return content[:at] + os.urandom(length) + content[at:]
