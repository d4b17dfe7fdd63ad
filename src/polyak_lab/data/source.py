"""Sources of data: where the files are, their content, and the official checksums."""

import gzip
import hashlib
import io
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from polyak_lab.data.dataset import Dataset
from polyak_lab.data.fetch import Download
from polyak_lab.errors import LabError
from polyak_lab.files import explain_os_errors

LARGEST = 1 << 30
"""Bytes of a file, unpacked: five times the largest official one."""

CHUNK = 1 << 20

Contents = Mapping[str, bytes]
"""The files of a data set by name, decompressed and taken out of their archive."""


@dataclass(frozen=True)
class Source:
    """One data set: functions from a root folder to tensors, and facts about its files."""

    name: str
    kind: str
    """Size and sort of the data, for the list of data sets."""
    how: str
    """How to get it, or where it comes from."""
    find: Callable[[Path], Path | None]
    """Root folder -> the file or folder that holds the data, None when there is none."""
    open: Callable[[Path], Contents]
    """That place -> contents; raises LabError when a file is missing or damaged."""
    parse: Callable[..., Dataset]
    """Contents, the place to name in errors, a text's context -> tensors; raises LabError."""
    md5: Mapping[str, str] = field(default_factory=dict)
    """MD5 sums of the official contents."""
    samples: int | None = None
    """Number of samples, for training and testing, where no checksum is published."""
    downloads: tuple[Download, ...] = ()
    context: int | None = None
    """Default length of a sequence of text; None for data that is no text."""
    needs_root: bool = False
    """Whether the data is a file or folder of the user's own, named by `root`."""
    digest: Callable[[Path], str] | None = None
    """Place -> SHA-256 of what it holds, if not that of its contents."""

    def load(self, place: Path, **options: int) -> Dataset:
        """Read the data set at a place that `find` returned."""
        return self.parse(self.open(place), place, **options)

    def checksum(self, place: Path) -> str:
        """Return the SHA-256 of the data at a place, so that a run is never resumed with other data."""
        return sha256_of(self.open(place)) if self.digest is None else self.digest(place)

    def differing(self, contents: Contents) -> list[str]:
        """Return the names of the contents that are not the official ones."""
        return [name for name, md5 in self.md5.items() if md5_of(contents[name]) != md5]


def md5_of(content: bytes) -> str:
    """Return the MD5 sum, which tells copies apart; it is no protection against forgery."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def sha256_of(contents: Contents) -> str:
    """Return the SHA-256 of contents, so that a run is never resumed with others."""
    digest = hashlib.sha256()
    for content in contents.values():
        digest.update(content)
    return digest.hexdigest()


def first_existing(places: Iterable[Path]) -> Path | None:
    """Return the first place that is a file or a folder with something in it."""
    return next((place for place in places if _holds_something(place)), None)


def _holds_something(place: Path) -> bool:
    with explain_os_errors("read", place):
        return place.is_file() or (place.is_dir() and any(place.iterdir()))


def read_file(path: Path) -> bytes:
    """Read a file whole, decompressing it when it is gzip; no more than fits the memory."""
    with explain_os_errors("read", path):
        if path.stat().st_size > LARGEST:
            raise damaged(path, f"it has more than {LARGEST:,} bytes")
        content = path.read_bytes()
    if not content.startswith(b"\x1f\x8b"):
        return content
    try:
        return _unpack(path, content)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise damaged(path, str(error)) from error


def _unpack(path: Path, content: bytes) -> bytes:
    """Decompress in chunks: one read of at most `LARGEST` bytes would allocate that many."""
    chunks: list[bytes] = []
    size = 0
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
        while chunk := file.read(CHUNK):
            size += len(chunk)
            if size > LARGEST:
                raise damaged(path, f"it unpacks to more than {LARGEST:,} bytes")
            chunks.append(chunk)
    return b"".join(chunks)


def missing(place: Path, wanted: str) -> LabError:
    """Return the error for a folder or archive that lacks a file, with what it holds instead."""
    names = sorted(path.name for path in place.iterdir()) if place.is_dir() else []
    content = f" but {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}" if names else ""
    return LabError(
        f"{place} does not hold {wanted}{content}: empty it and fetch the data again, or name another folder."
    )


def damaged(path: Path, why: str) -> LabError:
    """Return the error for a file that is not what its name says."""
    one_line = " ".join(why.split())  # it may quote the file
    return LabError(f"{path} is damaged or not what its name says ({one_line}): delete it and fetch it again.")
