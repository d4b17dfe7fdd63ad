"""Whatever $CC is and does, the kernels are compiled or one sentence says what is wrong and what to do."""

import os
import resource
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import polyak
from polyak._backend import cpu_build


@pytest.fixture(autouse=True)
def fresh_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cpu_build.kernels.cache_clear()
    yield
    cpu_build.kernels.cache_clear()


def compiler(tmp_path, script, name="compiler"):
    """Write a compiler as a shell script, in which $out is the library that is asked for."""
    path = tmp_path / name
    path.write_text(f'#!/bin/sh\nfor word; do [ "$last" = -o ] && out="$word"; last="$word"; done\n{script}\n')
    path.chmod(0o755)
    return str(path)


def sentence():
    """Ask for fused=True; return why it is refused, after a look at the form of the sentence."""
    w = nn.Parameter(torch.ones(2))
    with pytest.raises(RuntimeError) as info:
        polyak.ALIG([w], fused=True)
    said = str(info.value)
    assert said.startswith("fused=True needs a C compiler on the CPU, and "), said
    assert said.endswith("name another in $CC, or leave fused out."), said
    assert said.isprintable(), said
    assert len(said) < 300, said
    polyak.ALIG([w])
    return said


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ("gcc '", 'CC="gcc \'" is not a command (No closing quotation)'),
        ('gcc "', "CC='gcc \"' is not a command (No closing quotation)"),
        ("gcc \\", "is not a command (No escaped character)"),
        ("", "CC='' names no command"),
        ("  ", "CC=' ' names no command"),
        ("''", "names no command"),
        ("no-such-compiler", "no-such-compiler did not work (No such file or directory)"),
        ("/no/such/compiler -O2", "/no/such/compiler -O2 did not work (No such file or directory)"),
        ("/", "the command / did not work (it is a folder)"),
        ("false", "the command false did not work (exit status 1, without a message)"),
        ("true", "the command true did not work (it made no library)"),
        ("gcc\udcff", "did not work (No such file or directory)"),
        ("x" * 2000, "did not work (File name too long)"),
    ],
)
def test_a_command_that_is_none(given, part, monkeypatch):
    monkeypatch.setenv("CC", given)
    assert part in sentence()


@pytest.mark.parametrize(
    ("script", "part"),
    [
        (r"printf 'kernels.c: erreur \351\377\n' >&2; exit 1", "kernels.c: erreur ��"),
        (r"printf '\033[31mfatal error: no stdint.h\033[0m\n' >&2; exit 1", "fatal error: no stdint.h"),
        (r"printf 'In file included from x:\nx.h:1: fatal error: y\n' >&2; exit 1", "(x.h:1: fatal error: y)"),
        (
            r"printf 'ld: hm\nld: final link failed: No space left\ncollect2: error: ld returned 1\n' >&2; exit 1",
            "(ld: final link failed: No space left)",
        ),
        (
            r"printf 'ld: unable to find library -lomp\nclang: error: linker command failed\n' >&2; exit 1",
            "(ld: unable to find library -lomp)",
        ),
        (r"printf 'collect2: error: ld returned 1 exit status\n' >&2; exit 1", "(collect2: error: ld returned 1"),
        (r"printf '\n\n' >&2; exit 3", "(exit status 3, without a message)"),
        ("head -c 100000 /dev/zero | tr '\\0' e >&2; exit 1", "(eeeee"),
        ("echo 'only on stdout'; exit 1", "(only on stdout)"),
        pytest.param(
            "exec cat /dev/urandom",
            "",
            marks=pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="needs prlimit"),
        ),
        pytest.param(
            'exec cat /dev/zero > "$out"',
            "(killed by signal ",
            marks=pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="needs prlimit"),
        ),
        ("kill -SEGV $$", "(killed by signal 11)"),
        ('mkdir "$out"', "(it made no library)"),
        ('cc "$@"; truncate -s 9000 "$out"', "(its library was cut short)"),
        ('cc "$@"; truncate -s -1 "$out"', "(its library was cut short)"),
        (': > "$out"', "(its library cannot be loaded: file too short)"),
        ('echo "not a library, but some text, as long as a header of one would be" > "$out"', "invalid ELF header"),
        ('echo "double other(void) { return 0; }" | cc -shared -fPIC -o "$out" -x c -', "has no function polyak_pass)"),
    ],
)
def test_a_compiler_that_fails(script, part, monkeypatch, tmp_path):
    monkeypatch.setenv("CC", compiler(tmp_path, script))
    monkeypatch.setattr(cpu_build, "TIME_LIMIT", 20.0)
    monkeypatch.setattr(cpu_build, "SIZE_LIMIT", 1 << 20, raising=False)
    assert part in sentence()
    assert not [*tmp_path.rglob("*.so")]


def test_a_file_that_is_no_program(monkeypatch, tmp_path):
    monkeypatch.setenv("CC", compiler(tmp_path, ""))
    (tmp_path / "compiler").chmod(0o644)
    assert "Permission denied" in sentence()
    (tmp_path / "compiler").write_bytes(b"\0\1\2\3")
    (tmp_path / "compiler").chmod(0o755)
    assert "Exec format error" in sentence()


def test_a_compiler_is_given_no_input(monkeypatch, tmp_path):
    reading = compiler(tmp_path, 'cat; exec cc "$@"')
    read, write = os.pipe()
    before = os.dup(0)
    os.dup2(read, 0)
    try:
        monkeypatch.setenv("CC", reading)
        polyak.ALIG([nn.Parameter(torch.ones(2))], fused=True)
    finally:
        os.dup2(before, 0)
        for descriptor in (read, write, before):
            os.close(descriptor)


def test_a_compiler_that_hangs_is_stopped_with_all_it_started(monkeypatch, tmp_path):
    monkeypatch.setattr(cpu_build, "TIME_LIMIT", 0.5, raising=False)
    child = tmp_path / "child"
    monkeypatch.setenv("CC", compiler(tmp_path, f"sleep 30 & echo $! > {child}; wait"))
    assert "stopped after 0.5 s" in sentence()
    assert not is_running(int(child.read_text()))


def test_an_interrupt_stops_the_compiler(monkeypatch, tmp_path):
    child = tmp_path / "child"
    monkeypatch.setenv("CC", compiler(tmp_path, f"sleep 30 & echo $! > {child}; wait"))

    wait = subprocess.Popen.wait

    def interrupted(process, timeout=None):
        if timeout:
            while not (child.exists() and child.read_text()):
                time.sleep(0.01)
            signal.raise_signal(signal.SIGINT)
        return wait(process, timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cpu_build.kernels(torch.float32)
    assert not is_running(int(child.read_text()))


def is_running(pid):
    """Return whether a process still runs, or does so after the time the kernel needs to end it."""
    for _ in range(200):
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return False
        except (ProcessLookupError, FileNotFoundError):
            return False
        time.sleep(0.01)
    return True
