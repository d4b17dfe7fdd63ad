"""Atomic writes, on a disk that can be full."""

import os
import resource
from contextlib import contextmanager

import pytest

from polyak_lab.errors import LabError
from polyak_lab.files import write_atomic


@contextmanager
def room_for(size):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize(("content", "stored"), [(b"\x00\xff", b"\x00\xff"), ("γ = 1\n", "γ = 1\n".encode())])
def test_writes_bytes_and_text_into_new_folders(tmp_path, content, stored):
    path = tmp_path / "new" / "folder" / "file"
    write_atomic(path, content)
    assert path.read_bytes() == stored
    assert os.listdir(path.parent) == ["file"]  # noqa: PTH208


def test_new_files_are_as_readable_as_any(tmp_path):
    write_atomic(tmp_path / "atomic", "x")
    (tmp_path / "plain").write_text("x")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_full_disk_keeps_the_old_content_and_no_rest(tmp_path):
    path = tmp_path / "file"
    write_atomic(path, b"old")
    with room_for(1000), pytest.raises(LabError, match=rf"Cannot write {path}: File too large\."):
        write_atomic(path, b"x" * 100_000)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_interrupt_leaves_no_rest(tmp_path, monkeypatch):
    def interrupt(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "file", b"x")
    assert list(tmp_path.iterdir()) == []


def test_folder_in_the_way_is_said(tmp_path):
    (tmp_path / "file").mkdir()
    with pytest.raises(LabError, match=r"Cannot write .*file: Is a directory"):
        write_atomic(tmp_path / "file", b"x")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
