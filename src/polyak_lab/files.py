"""Atomic writes: a reader sees the old content of a file or the new, never a part of it."""

import os
import stat
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from polyak_lab.errors import LabError

PREFIX, SUFFIX = ".polyak-", ".tmp"
"""Start and end of temporary file names, around 8 random letters and the final name."""


def write_atomic(path: Path, content: bytes | str) -> None:
    """Replace the file at `path` by `content` in one step.

    The content is written to a temporary file in the same folder, flushed to the disk and renamed
    to `path`, so that a killed process or a full disk never leaves part of a file. The new file
    keeps the mode and the owner of the old one. Symbolic links are followed. Only regular files are
    replaced: pipes, devices and the standard streams, such as /dev/stdout, are written to in place.

    Args:
        path: The file to write; its folder is created if missing.
        content: Bytes, or text that is encoded as UTF-8.

    Raises:
        LabError: The file cannot be written; it keeps its old content.
    """
    data = content.encode() if isinstance(content, str) else content
    path = Path(path)
    with explain_os_errors("write", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        status = _status(path)
        if stream := _standard_stream(status):
            _write_in_place(os.dup(stream), data)
        elif status is not None and not _is_replaceable(path, status):
            _write_in_place(os.open(path, os.O_WRONLY | os.O_APPEND), data)
        else:
            _replace(Path(os.path.realpath(path)), data, status)


def append_line(path: Path, line: str) -> None:
    """Append a line to a regular file and flush it to the disk; an error leaves the file unchanged.

    Raises:
        LabError: The line cannot be written.
    """
    with explain_os_errors("write", path), path.open("ab") as file:
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
    """Remove the temporary files that killed processes left in a folder."""
    for leftover in folder.glob(f"{PREFIX}????????.*{SUFFIX}"):
        with explain_os_errors("remove", leftover):
            leftover.unlink(missing_ok=True)


def exists(path: Path) -> bool:
    """Return whether a path exists; a parent folder without permission is an error."""
    with explain_os_errors("read", path):
        return path.exists()


def is_file(path: Path) -> bool:
    """Return whether a path is a file; a parent folder without permission, or a name that is too long, is an error."""
    with explain_os_errors("read", path):
        return path.is_file()


def is_folder(path: Path) -> bool:
    """Return whether a path is a folder; errors are those of `is_file`."""
    with explain_os_errors("read", path):
        return path.is_dir()


def is_standard_stream(path: Path) -> bool:
    """Return whether a path, such as /dev/stdout, is standard output or error."""
    with suppress(OSError):
        return _standard_stream(_status(path)) is not None
    return False


def is_device(path: Path) -> bool:
    """Return whether a path is no file on a disk: a pipe, a device, or a descriptor such as /dev/fd/3."""
    with suppress(OSError):
        status = _status(path)
        return status is not None and not _is_replaceable(path, status)
    return False


def check_suffix(flag: str, path: Path, suffixes: Sequence[str]) -> None:
    """Refuse to replace a file of another kind, such as a checkpoint; symbolic links are followed.

    Raises:
        LabError: The name of the file has another suffix.
    """
    for name in (path, Path(os.path.realpath(path))):
        if name.suffix.lower() not in suffixes:
            raise LabError(f"{flag} is {name}, but must be a file that ends in {' or '.join(suffixes)}.")


@contextmanager
def explain_os_errors(verb: str, path: Path) -> Iterator[None]:
    """Turn an OSError, such as a full disk, or a name that this locale lacks, into a LabError that names the file."""
    try:
        yield
    except UnicodeEncodeError as error:
        letters = error.object[error.start : error.end]
        where = f"file names of this locale ({error.encoding})"
        raise LabError(f"Cannot {verb} {path}: {where} cannot hold {letters!r}; set PYTHONUTF8=1.") from error
    except OSError as error:
        raise LabError(f"Cannot {verb} {path}: {error.strerror or error}.") from error


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _standard_stream(status: os.stat_result | None) -> int | None:
    """Return the descriptor of standard output or error if it is this file."""
    for stream in (sys.stdout, sys.stderr):
        # Closed, or replaced by an object without a file.
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
            if status is not None and os.path.samestat(status, os.fstat(stream.fileno())):
                return stream.fileno()
    return None


def _is_replaceable(path: Path, status: os.stat_result) -> bool:
    """Return whether a path is a regular file, not a descriptor such as /dev/fd/3."""
    while path.is_symlink() and not _is_descriptor(path):
        path = path.parent / path.readlink()
    return not _is_descriptor(path) and (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode))


def _is_descriptor(path: Path) -> bool:
    return os.path.realpath(path.parent).startswith(("/proc/", "/dev/fd"))


def _write_in_place(handle: int, data: bytes) -> None:
    with os.fdopen(handle, "wb") as file:
        file.write(data)


def _replace(path: Path, data: bytes, old: os.stat_result | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    short = os.fsencode(path.name)[:100].decode(sys.getfilesystemencoding(), errors="ignore")
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=PREFIX, suffix=f".{short}{SUFFIX}")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            _copy_permissions(file.fileno(), old)
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:  # also on Ctrl-C: leave no temporary file
        Path(name).unlink(missing_ok=True)
        raise


def _copy_permissions(handle: int, old: os.stat_result | None) -> None:
    """Copy owner and mode of the old file; mkstemp restricts access to the owner."""
    if old is None:
        os.fchmod(handle, 0o666 & ~_umask())
        return
    with suppress(OSError):  # only root may change the owner
        os.fchown(handle, old.st_uid, old.st_gid)
    os.fchmod(handle, stat.S_IMODE(old.st_mode))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
