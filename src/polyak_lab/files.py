"""Writing files so that a reader sees the old content or the new, never a half."""

import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from polyak_lab.errors import LabError

PREFIX, SUFFIX = ".polyak-", ".tmp"
"""How the name of a file begins and ends while it is written; between them are 8 random letters and its name."""


def write_atomic(path: Path, content: bytes | str) -> None:
    """Replace the file at `path` by `content` in one step.

    The content goes to a temporary file in the same folder, is flushed to the disk and renamed over `path`, so that
    neither a killed process nor a full disk leaves half a file. The new file has the mode and the owner of the old one.
    A symbolic link is followed. Only regular files are replaced: pipes, devices and the standard streams, such as
    /dev/stdout, are written to as they are.

    Args:
        path: The file to write; its folder is made when missing.
        content: Bytes, or text that is stored as UTF-8.

    Raises:
        LabError: The file cannot be written; the old content is still there and the temporary file is not.
    """
    data = content.encode() if isinstance(content, str) else content
    path = Path(path)
    with said_clearly("write", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        there = _status(path)
        if stream := _standard_stream(there):
            _write_through(os.dup(stream), data)
        elif there is not None and not _is_replaceable(path, there):
            _write_through(os.open(path, os.O_WRONLY | os.O_APPEND), data)
        else:
            _write_beside(Path(os.path.realpath(path)), data, there)


def append_line(path: Path, line: str) -> None:
    """Append a line to a regular file and flush it to the disk; after an error the file is as long as before.

    Raises:
        LabError: The line cannot be written.
    """
    with said_clearly("write", path), path.open("ab") as file:
        length = file.tell()
        try:
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())
        except BaseException:
            with suppress(OSError):
                os.ftruncate(file.fileno(), length)
            raise


def remove_unfinished(folder: Path) -> None:
    """Remove what killed processes left of files that they were writing in a folder, and nothing else."""
    for leftover in folder.glob(f"{PREFIX}????????.*{SUFFIX}"):
        with said_clearly("remove", leftover):
            leftover.unlink(missing_ok=True)


def exists(path: Path) -> bool:
    """Tell whether there is anything at a path; a folder above it that may not be entered is an error."""
    with said_clearly("read", path):
        return path.exists()


@contextmanager
def said_clearly(verb: str, path: Path) -> Iterator[None]:
    """Turn an OSError (disk full, no permission, ...) into a LabError that names the file."""
    try:
        yield
    except OSError as error:
        raise LabError(f"Cannot {verb} {path}: {error.strerror or error}.") from error


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _standard_stream(there: os.stat_result | None) -> int | None:
    """Return the descriptor of standard output or error if it is this file: both must share one position in it."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # closed, or replaced by something without a file
            stream.flush()
            if there is not None and os.path.samestat(there, os.fstat(stream.fileno())):
                return stream.fileno()
    return None


def _is_replaceable(path: Path, there: os.stat_result) -> bool:
    """Tell whether a path leads to a regular file by its name, not by a descriptor such as /dev/fd/3."""
    while path.is_symlink() and not _is_descriptor(path):
        path = path.parent / path.readlink()
    return not _is_descriptor(path) and (stat.S_ISREG(there.st_mode) or stat.S_ISDIR(there.st_mode))


def _is_descriptor(path: Path) -> bool:
    return os.path.realpath(path.parent).startswith(("/proc/", "/dev/fd"))


def _write_through(handle: int, data: bytes) -> None:
    with os.fdopen(handle, "wb") as file:
        file.write(data)


def _write_beside(path: Path, data: bytes, replaced: os.stat_result | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    short = path.name.encode()[:100].decode(errors="ignore")
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=PREFIX, suffix=f".{short}{SUFFIX}")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            _keep_access(file.fileno(), replaced)
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:  # Ctrl-C as well: nothing half-written stays behind
        Path(name).unlink(missing_ok=True)
        raise


def _keep_access(handle: int, replaced: os.stat_result | None) -> None:
    """Give a new file the owner and the mode of the one it replaces; mkstemp's only its owner can read."""
    if replaced is None:
        os.fchmod(handle, 0o666 & ~_umask())
        return
    with suppress(OSError):  # only root may give files away
        os.fchown(handle, replaced.st_uid, replaced.st_gid)
    os.fchmod(handle, stat.S_IMODE(replaced.st_mode))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
