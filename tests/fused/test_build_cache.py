"""The cache of compiled kernels: only what this user stored is loaded, and no state of it stops a program."""

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from polyak._backend import cpu_build

PLANTED = "double polyak_pass(void *p) { return 42; }"
NOBODY = 65534
AS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0
MOUNT = ["unshare", "--mount", *([] if AS_ROOT else ["--map-root-user"])]
ON_MOUNTS = """
import ctypes, os, subprocess, sys, tempfile
from pathlib import Path
import torch
from polyak._backend import cpu_build

cpu_build.FLAGS = ("-O0", "-shared", "-fPIC")
for options in ["size=4k", "nr_inodes=2", "noexec", "ro"]:
    cache = Path(sys.argv[1], options)
    cache.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"mode=700,{options}", "none", cache], check=True)
    os.environ["XDG_CACHE_HOME"] = str(cache)
    cpu_build.kernels.cache_clear()
    print(options, cpu_build.kernels(torch.float32)(ctypes.byref(cpu_build.Pass(threads=1))))
cpu_build.kernels.cache_clear()
tempfile.tempdir = os.environ["XDG_CACHE_HOME"] = str(Path(sys.argv[1], "noexec"))
try:
    cpu_build.kernels(torch.float32)
except RuntimeError as error:
    print(error)
"""


@pytest.fixture(autouse=True)
def fast_compilation(monkeypatch, tmp_path):
    """Compile in little time, and look for kernels as a new process does."""
    monkeypatch.setattr(cpu_build, "FLAGS", ("-O0", "-shared", "-fPIC"))
    monkeypatch.setattr(cpu_build, "PROCESSORS", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cpu_build.kernels.cache_clear()
    yield
    cpu_build.kernels.cache_clear()


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A library that another user could have written."""
    folder = tmp_path_factory.mktemp("planted")
    (folder / "planted.c").write_text(PLANTED)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", folder / "planted.so", folder / "planted.c"], check=True)
    return folder / "planted.so"


@pytest.fixture
def plant(tmp_path, planted, monkeypatch):
    """Return a function that fills a cache with the planted library, under every name it could be loaded by."""
    measure()
    [name] = [library.stem for library in libraries(tmp_path / "cache")]
    digest = hashlib.sha256(planted.read_bytes()).hexdigest()

    def plant(home: Path) -> Path:
        folder = home / "polyak" / "kernels"
        folder.mkdir(parents=True, mode=0o700, exist_ok=True)
        for stem in (name, "-".join([*name.split("-")[:2], digest])):
            shutil.copy(planted, folder / f"{stem}.so")
            (folder / f"{stem}.so").chmod(0o600)
        monkeypatch.setenv("XDG_CACHE_HOME", str(home))
        cpu_build.kernels.cache_clear()
        return folder

    return plant


def measure() -> float:
    """Load the kernels and use them: 42 from the planted library."""
    return cpu_build.kernels(torch.float32)(ctypes.byref(cpu_build.Pass(threads=1)))


def libraries(home: Path) -> list[Path]:
    return sorted((home / "polyak" / "kernels").glob("*"))


def test_what_this_user_alone_can_write_is_loaded(plant, tmp_path):
    plant(tmp_path / "mine")
    assert measure() == 42


def group_writable(folder):
    folder.chmod(0o770)


def world_writable(folder):
    folder.chmod(0o707)


def sticky_and_writable(folder):
    folder.chmod(0o1777)


def parent_group_writable(folder):
    folder.parent.chmod(0o770)


def home_world_writable(folder):
    folder.parent.parent.chmod(0o777)


def library_group_writable(folder):
    for library in folder.iterdir():
        library.chmod(0o660)


def library_world_writable(folder):
    for library in folder.iterdir():
        library.chmod(0o602)


def library_is_a_link(folder):
    for library in [*folder.iterdir()]:
        library.symlink_to(library.rename(folder.parent / library.name))


def linked_to_a_writable_folder(folder):
    real = folder.rename(folder.parent.parent / "elsewhere")
    real.chmod(0o777)
    folder.symlink_to(real)


def library_of_another(folder):
    for library in folder.iterdir():
        os.chown(library, NOBODY, NOBODY)


def folder_of_another(folder):
    os.chown(folder, NOBODY, NOBODY)


def parent_of_another(folder):
    os.chown(folder.parent, NOBODY, NOBODY)


def link_of_another(folder):
    real = folder.rename(folder.parent.parent / "elsewhere")
    folder.symlink_to(real)
    os.chown(folder, NOBODY, NOBODY, follow_symlinks=False)


def home_of_another_in_a_sticky_folder(folder):
    folder.parent.parent.parent.chmod(0o1777)
    os.chown(folder.parent.parent, NOBODY, NOBODY)


MODES = [
    group_writable,
    world_writable,
    sticky_and_writable,
    parent_group_writable,
    home_world_writable,
    library_group_writable,
    library_world_writable,
    library_is_a_link,
    linked_to_a_writable_folder,
]
OWNERS = [
    library_of_another,
    folder_of_another,
    parent_of_another,
    link_of_another,
    home_of_another_in_a_sticky_folder,
]


@pytest.mark.parametrize("spoil", MODES, ids=lambda spoil: spoil.__name__)
def test_what_others_can_write_is_not_loaded(spoil, plant, tmp_path):
    spoil(plant(tmp_path / "theirs" / "home"))
    assert measure() == 0


@pytest.mark.skipif(not AS_ROOT, reason="only root can give files away")
@pytest.mark.parametrize("spoil", OWNERS, ids=lambda spoil: spoil.__name__)
def test_what_another_user_owns_is_not_loaded(spoil, plant, tmp_path):
    spoil(plant(tmp_path / "theirs" / "home"))
    assert measure() == 0


def test_another_user_finds_nothing_here(plant, tmp_path, monkeypatch):
    folder = plant(tmp_path / "theirs")
    before = [*folder.iterdir()]
    monkeypatch.setattr(os, "geteuid", lambda: NOBODY - 1)
    assert measure() == 0
    assert [*folder.iterdir()] == before  # nothing is written into another user's folder, either


@pytest.mark.parametrize("home", ["cache", ".", "./cache", "..", "~/cache"])
def test_a_relative_cache_home_is_ignored(home, plant, tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    plant(tmp_path / "work" / home)
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", home)
    assert measure() == 0
    assert len(libraries(tmp_path / "home" / ".cache")) == 1


def test_the_folders_are_made_for_this_user_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a" / "b"))
    before = os.umask(0)
    try:
        measure()
    finally:
        os.umask(before)
    made = [tmp_path / "a", *(tmp_path / "a").rglob("*")]
    assert len(made) == 5
    assert {path.stat().st_mode & 0o777 for path in made if path.is_dir()} == {0o700}
    assert {path.stat().st_mode & 0o077 for path in made} == {0}


def test_a_linked_cache_is_used(tmp_path):
    (tmp_path / "disk").mkdir(mode=0o700)
    (tmp_path / "cache").symlink_to("disk")
    measure()
    assert len(libraries(tmp_path / "disk")) == 1


def cut(data):
    return data[: len(data) // 2]


def cut_by_one(data):
    return data[:-1]


def emptied(data):
    return b""


def zeroed(data):
    return bytes(len(data))


def flipped(data):
    return data[:999] + bytes([data[999] ^ 1]) + data[1000:]


def extended(data):
    return data + b"\0"


def replaced_by_text(data):
    return b"not a library\n"


DAMAGE = [cut, cut_by_one, emptied, zeroed, flipped, extended, replaced_by_text]


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_a_damaged_library_is_replaced(damage, tmp_path, monkeypatch):
    measure()
    [library] = libraries(tmp_path / "cache")
    sound = library.read_bytes()
    shutil.copytree(tmp_path / "cache", tmp_path / "moved")  # a library that is loaded must not change in place
    [damaged] = libraries(tmp_path / "moved")
    damaged.write_bytes(damage(sound))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "moved"))
    cpu_build.kernels.cache_clear()
    assert measure() == 0
    assert [*map(Path.read_bytes, libraries(tmp_path / "moved"))] == [sound]


@pytest.mark.parametrize("odd", ["folder", "fifo", "link to nothing"])
def test_what_is_no_file_is_not_opened(odd, plant, tmp_path):
    folder = plant(tmp_path / "odd")
    for library in [*folder.iterdir()]:
        library.unlink()
        if odd == "folder":
            library.mkdir()
        elif odd == "fifo":
            os.mkfifo(library)
        else:
            library.symlink_to("nothing")
    assert measure() == 0


def test_a_library_is_synced_before_it_gets_its_name(tmp_path, monkeypatch):
    seen = []
    fsync = os.fsync

    def spy(descriptor):
        seen.append((os.fstat(descriptor).st_size > 0, [*(tmp_path / "cache").rglob("kernels-*.so")]))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", spy)
    measure()
    assert seen == [(True, [])]


def test_builders_at_the_same_time_leave_one_library(tmp_path):
    workers = [threading.Thread(target=cpu_build.kernels.__wrapped__, args=(torch.float32,)) for _ in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(libraries(tmp_path / "cache")) == 1
    assert measure() == 0


def test_without_a_home_the_kernels_are_compiled_for_this_process(tmp_path, monkeypatch):
    def homeless(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "expanduser", homeless)
    assert measure() == 0


@pytest.mark.parametrize("obstacle", ["file", "dangling link", "circle", "too long", "device"])
def test_a_cache_that_cannot_be_made_is_done_without(obstacle, tmp_path, monkeypatch):
    home = tmp_path / "cache"
    if obstacle == "file":
        home.write_text("a file, where a folder is wanted")
    elif obstacle == "dangling link":
        home.symlink_to("nothing")
    elif obstacle == "circle":
        home.symlink_to("cache")
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null" if obstacle == "device" else str(tmp_path / ("x" * 300)))
    assert measure() == 0
    assert not [*tmp_path.rglob("*.so")]


@pytest.mark.parametrize("failing", ["mkstemp", "fsync", "replace"])
def test_a_full_cache_is_done_without(failing, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    owner = {"mkstemp": cpu_build.tempfile, "fsync": os, "replace": Path}[failing]
    monkeypatch.setattr(owner, failing, full)
    assert measure() == 0
    assert not libraries(tmp_path / "cache")


@pytest.mark.skipif(not shutil.which("unshare"), reason="needs unshare")
def test_a_cache_on_a_full_noexec_or_read_only_file_system_is_done_without(tmp_path):
    if subprocess.run([*MOUNT, "mount", "-t", "tmpfs", "none", tmp_path], capture_output=True).returncode:
        pytest.skip("this user cannot mount a file system")
    command = [*MOUNT, sys.executable, "-c", ON_MOUNTS, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    *used, refusal = run.stdout.splitlines()
    assert used == ["size=4k 0.0", "nr_inodes=2 0.0", "noexec 0.0", "ro 0.0"]
    assert refusal.startswith(f"fused=True cannot store its compiled kernels ({tmp_path}")
    assert "is mounted noexec): set $TMPDIR to a folder" in refusal
    assert len(refusal) < 300


def test_without_any_writable_folder_the_sentence_says_so(tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file, where a folder is wanted")

    def nowhere(*args, **kwargs):
        raise FileNotFoundError(
            2, "No usable temporary directory found in ['/tmp', '/var/tmp', '/usr/tmp', '/home/me']"
        )

    monkeypatch.setattr(cpu_build.tempfile, "gettempdir", nowhere)
    monkeypatch.setattr(cpu_build.tempfile, "mkdtemp", nowhere)
    with pytest.raises(
        RuntimeError, match=r"cannot store .*No usable temporary directory.*set \$TMPDIR .*leave fused out\.$"
    ):
        measure()


def test_kernels_that_are_not_installed_are_said_to_be_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(cpu_build, "SOURCE", tmp_path / "cpu_kernels.c")
    with pytest.raises(RuntimeError, match=r"cannot read its kernels .*cpu_kernels\.c.*reinstall polyak.*\.$"):
        measure()
