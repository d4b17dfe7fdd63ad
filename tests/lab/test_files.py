"""Atomic writes, on a disk that can be full."""

import os
import resource
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from polyak_lab.errors import LabError
from polyak_lab.files import append_line, write_atomic


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


def entries(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o755, 0o444])
def test_the_mode_of_a_replaced_file_is_kept(tmp_path, mode):
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(mode)
    write_atomic(path, "new")
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("new", mode)


@pytest.mark.parametrize("links", [1, 3])
@pytest.mark.parametrize("exists", [True, False])
def test_links_are_followed(tmp_path, links, exists):
    (tmp_path / "elsewhere").mkdir()
    target = tmp_path / "elsewhere" / "file"
    if exists:
        target.write_text("old")
        target.chmod(0o600)
    (tmp_path / "link0").symlink_to("elsewhere/file")
    for number in range(1, links):
        (tmp_path / f"link{number}").symlink_to(f"link{number - 1}")
    write_atomic(tmp_path / f"link{links - 1}", "new")
    assert target.read_text() == "new"
    assert all((tmp_path / f"link{number}").is_symlink() for number in range(links))
    assert not exists or stat.S_IMODE(target.stat().st_mode) == 0o600
    assert entries(tmp_path / "elsewhere") == ["file"]


def test_links_in_a_circle_are_said(tmp_path):
    (tmp_path / "one").symlink_to("other")
    (tmp_path / "other").symlink_to("one")
    with pytest.raises(LabError, match=r"Cannot write .*one: Too many levels of symbolic links\."):
        write_atomic(tmp_path / "one", "x")
    assert entries(tmp_path) == ["one", "other"]


def test_a_pipe_is_written_to(tmp_path):
    path, content = tmp_path / "pipe", b"x" * 300_000
    os.mkfifo(path)
    with ThreadPoolExecutor() as reader:
        read = reader.submit(path.read_bytes)
        write_atomic(path, content)
        assert read.result() == content
    assert path.is_fifo()


def test_a_device_stays(tmp_path):
    (tmp_path / "link").symlink_to("/dev/null")
    write_atomic(tmp_path / "link", "x")
    assert (tmp_path / "link").is_symlink()
    assert Path("/dev/null").is_char_device()


PROGRAM = """
import os, sys
from pathlib import Path
from polyak_lab.files import append_line, write_atomic
print("before")
write_atomic(Path(sys.argv[1]), "page\\n")
print("after")
"""


def written_by(path, redirection, folder):
    command = [sys.executable, "-c", PROGRAM, str(path)]
    with (folder / "out").open("wb") as file:
        streams = {
            "pipe": {"stdout": subprocess.PIPE},
            "file": {"stdout": file},
            "third": {"pass_fds": [file.fileno()]},
        }
        if redirection == "third":
            command[-1] = f"/dev/fd/{file.fileno()}"
        done = subprocess.run(command, check=True, text=True, **streams[redirection])
    return done.stdout if redirection == "pipe" else (folder / "out").read_text()


@pytest.mark.parametrize(
    ("path", "redirection", "expected"),
    [
        ("/dev/stdout", "pipe", "before\npage\nafter\n"),
        ("/dev/stdout", "file", "before\npage\nafter\n"),
        ("/proc/self/fd/1", "file", "before\npage\nafter\n"),
        ("/dev/fd", "third", "page\n"),
        ("link", "pipe", "before\npage\nafter\n"),
        ("link", "file", "before\npage\nafter\n"),
    ],
)
def test_standard_output_is_written_to(path, redirection, expected, tmp_path):
    if path == "link":
        path = tmp_path / "link"
        path.symlink_to("/dev/stdout")
    assert written_by(path, redirection, tmp_path) == expected
    assert set(entries(tmp_path)) <= {"link", "out"}


def test_a_line_is_appended_whole_or_not_at_all(tmp_path):
    path = tmp_path / "lines"
    append_line(path, "one\n")
    append_line(path, "γ\n")
    with room_for(1000), pytest.raises(LabError, match=rf"Cannot write {path}: File too large\."):
        append_line(path, "x" * 100_000)
    assert path.read_text() == "one\nγ\n"
