"""The lock of a folder: one process at a time, released however that process ends, and no file of its own."""

import signal
import subprocess
import sys

import pytest

from polyak_lab.errors import LabError
from polyak_lab.runs.lock import locked

HOLDER = """
import sys, time
from pathlib import Path
from polyak_lab.runs.lock import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock."""
    child = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path / "run"], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "locked\n"
    yield child
    child.kill()
    child.wait()
    child.stdout.close()


def test_a_second_process_is_refused(holder, tmp_path):
    message = r"Another process is at work in .*run: wait for it, or choose another --out\."
    with pytest.raises(LabError, match=message), locked(tmp_path / "run"):
        pass


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_lock_ends_with_its_process(number, holder, tmp_path):
    holder.send_signal(number)
    holder.wait()
    with locked(tmp_path / "run"):
        pass
    assert list((tmp_path / "run").iterdir()) == []


def test_a_folder_that_only_its_owner_may_write_to_is_locked(tmp_path):
    (tmp_path / "run").mkdir(mode=0o555)
    with locked(tmp_path / "run"):
        pass


def test_an_error_inside_releases_the_lock(tmp_path):
    with pytest.raises(KeyError), locked(tmp_path):
        raise KeyError
    with locked(tmp_path):
        pass
