"""Writing files so that a reader sees the old content or the new, never a half."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from polyak_lab.errors import LabError


def write_atomic(path: Path, content: bytes | str) -> None:
    """Replace the file at `path` by `content` in one step.

    The content goes to a temporary file in the same folder, is flushed to the disk and renamed over `path`, so that
    neither a killed process nor a full disk leaves half a file.

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
        _write_beside(path, data)


@contextmanager
def said_clearly(verb: str, path: Path) -> Iterator[None]:
    """Turn an OSError (disk full, no permission, ...) into a LabError that names the file."""
    try:
        yield
    except OSError as error:
        raise LabError(f"Cannot {verb} {path}: {error.strerror or error}.") from error


def _write_beside(path: Path, data: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o666 & ~_umask())  # mkstemp makes files only their owner can read
        Path(name).replace(path)
    except BaseException:  # Ctrl-C as well: nothing half-written stays behind
        Path(name).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
