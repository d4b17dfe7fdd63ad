"""A folder that one process at a time works in."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import lock_descriptor

from polyak_lab.errors import LabError
from polyak_lab.files import explain_os_errors

NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EBADF)
"""The errors of file systems without locks."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Create a folder if needed and lock it against other processes.

    The folder itself is locked, without a lock file: this works in read-only folders, and the
    operating system releases the lock when the process ends, even if it is killed. A file system
    without locks, and Windows, offer no protection.

    Raises:
        LabError: Another process holds the lock, or the folder cannot be created or opened.
    """
    with explain_os_errors("make the run folder", folder):
        folder.mkdir(parents=True, exist_ok=True)
    if os.name != "posix":  # Windows opens no folders
        yield
        return
    with explain_os_errors("open", folder):
        descriptor = os.open(folder, os.O_RDONLY)
    try:
        _lock(descriptor, folder)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    try:
        is_free = lock_descriptor(descriptor, blocking=False)
    except OSError as error:
        if error.errno in NO_LOCKS:
            return
        raise LabError(f"Cannot lock {folder}: {error.strerror or error}.") from error
    if not is_free:
        raise LabError(f"Another process is at work in {folder}: wait for it, or choose another --out.")
