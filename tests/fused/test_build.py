"""The kernels of the CPU are compiled once, in every way there is to the same bits, or a sentence says why not."""

import contextlib

import pytest
import torch
from torch import nn

import polyak
from observe import SMALL_BALLS, give, random_like, refused
from polyak._backend import cpu_build

pytestmark = pytest.mark.filterwarnings(SMALL_BALLS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_end_does_not_depend_on_the_number_of_threads(dtype):
    ends = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            ends.append(walk(dtype))
        finally:
            torch.set_num_threads(1)
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2])


def test_a_compiler_without_threads_gives_the_same_bits(monkeypatch, tmp_path):
    expected = walk()
    monkeypatch.setattr(cpu_build, "THREADS", (("-no-such-flag",), ()))
    with fresh_kernels(monkeypatch, tmp_path):
        assert torch.equal(walk(), expected)
    assert len([*tmp_path.rglob("kernels-*.so")]) == 1


def test_kernels_are_compiled_once_for_all_processes_that_share_a_cache(monkeypatch, tmp_path):
    with fresh_kernels(monkeypatch, tmp_path):
        expected = walk()
    monkeypatch.setattr(cpu_build, "_compile", None)
    with fresh_kernels(monkeypatch, tmp_path):
        assert torch.equal(walk(), expected)


def test_a_cache_that_cannot_be_written_or_read_is_done_without(monkeypatch, tmp_path):
    (tmp_path / "polyak").write_text("a file, where a folder is wanted")
    with fresh_kernels(monkeypatch, tmp_path):
        assert walk().isfinite().all()


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_without_a_compiler_a_sentence_says_what_to_do(compiler, monkeypatch, tmp_path):
    w = nn.Parameter(torch.ones(2))
    with fresh_kernels(monkeypatch, tmp_path, CC=compiler):
        with refused(RuntimeError, "fused=True", f"{compiler} did not work", "apt-get install gcc", "leave fused out"):
            polyak.ALIG([w], fused=True)
        polyak.ALIG([w])


def walk(dtype=torch.float32):
    """Return where three steps on tensors of several spans lead."""
    params = [nn.Parameter(torch.ones(size, dtype=dtype)) for size in (100_003, 5, 40_000)]
    optimizer = polyak.ALIG(params, momentum=0.9, constraint=polyak.L2Ball(100.0), fused=True)
    for t in range(3):
        give(params, *random_like(params, seed=t))
        optimizer.step(loss=1e6)
    return torch.cat([p.detach() for p in params])


@contextlib.contextmanager
def fresh_kernels(monkeypatch, cache, **environment):
    """Let kernels be found as in a new process, with another cache."""
    for name, value in {"XDG_CACHE_HOME": str(cache), **environment}.items():
        monkeypatch.setenv(name, value)
    cpu_build.kernels.cache_clear()
    try:
        yield
    finally:
        cpu_build.kernels.cache_clear()
