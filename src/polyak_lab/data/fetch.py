"""Downloading a file so that it is either there and right, or not there."""

import hashlib
import os
import re
import ssl
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, final
from urllib.error import HTTPError, URLError

from polyak_lab.errors import LabError
from polyak_lab.files import explain_os_errors

OnProgress = Callable[[int, int | None], None]
"""Called with the bytes so far and in all (None when the server does not say)."""

_CHUNK = 1 << 20
_TIMEOUT = 30  # seconds without a byte
# ValueError: a redirect to what is no address
_NETWORK_ERRORS = (URLError, ConnectionError, TimeoutError, ssl.SSLError, HTTPException, ValueError)


@dataclass(frozen=True)
class Download:
    """An official address, with the file's MD5 sum if published, else its number of lines."""

    url: str
    md5: str | None = None
    lines: int | None = None

    @property
    def name(self) -> str:
        """Name of the file."""
        return self.url.rpartition("/")[2]


def download(
    item: Download,
    folder: Path,
    on_progress: OnProgress = lambda done, total: None,
) -> Path:
    """Download a file into a folder, resuming an interrupted download.

    The bytes are collected in NAME.part, which becomes NAME once its checksum is right, or its
    number of lines where no checksum is published. An existing file is never overwritten: it is
    kept if it is the official one.

    Raises:
        LabError: No network, the server refuses, the checksum differs, or the disk is full.
    """
    target, part = folder / item.name, folder / f"{item.name}.part"
    with explain_os_errors("write", part):
        if target.exists():
            return _accepted(target, item, "delete it to download it anew")
        if target.is_symlink():
            raise LabError(f"{target} is a link to a file that is missing: delete the link to download it here.")
        folder.mkdir(parents=True, exist_ok=True)
        try:
            _receive(item.url, part, on_progress)
        except _NETWORK_ERRORS as error:
            raise _unreachable(item, target, error) from error
        return _accepted(part, item, "it was deleted, try again", delete=True).replace(target)


def _unreachable(item: Download, target: Path, error: Exception) -> LabError:
    reason = " ".join(str(getattr(error, "reason", None) or error or type(error).__name__).split())[:120]
    return LabError(
        f"Cannot download {item.url} ({reason}): try again to resume, or save that file as {target} yourself."
    )


def _receive(url: str, part: Path, on_progress: OnProgress) -> None:
    start = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "polyak", **({"Range": f"bytes={start}-"} if start else {})}
    try:
        opener = urllib.request.build_opener(_Redirects)
        with opener.open(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT) as response:
            resumes = getattr(response, "status", None) == 206
            answered = re.match(r"\s*bytes\s+(\d+)-", response.headers.get("Content-Range", ""))
            if resumes and answered and int(answered[1][:20]) != start:
                part.unlink(missing_ok=True)
                raise ConnectionError("the server sent another part of the file than the one asked for")
            _append(response, part, start if resumes else 0, on_progress)
    except HTTPError as error:
        error.close()
        # "range not satisfiable": all of it is there, and the checksum will judge it.
        if error.code != 416:
            raise


@final
class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects; close the connection of an invalid one, which urllib leaves open."""

    def http_error_302(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> Any:
        try:
            return super().http_error_302(req, fp, code, msg, headers)
        except ValueError:
            fp.close()
            raise

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def _append(response: Any, part: Path, start: int, on_progress: OnProgress) -> None:
    length = response.headers.get("Content-Length", "").strip()
    total = start + int(length) if length.isascii() and length.isdigit() and len(length) < 19 else None
    done = start
    with part.open("ab" if start else "wb") as file:
        while chunk := response.read(_CHUNK):
            done += file.write(chunk)
            on_progress(done, total)
        file.flush()
        os.fsync(file.fileno())
    if total is not None and done < total:
        raise ConnectionError(f"the connection ended after {done} of {total} bytes")


def _accepted(path: Path, item: Download, advice: str, delete: bool = False) -> Path:
    difference = _difference(path, item)
    if difference is None:
        return path
    if delete:
        path.unlink()
    raise LabError(f"{path} is not the official file: {difference}; {advice}.")


def _difference(path: Path, item: Download) -> str | None:
    """Return how a file differs from the official one; None if no difference is known."""
    with path.open("rb") as file:
        if item.md5 is not None:
            md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
            return None if md5 == item.md5 else f"its MD5 sum is {md5} instead of {item.md5}"
        if item.lines is not None:
            lines = sum(line.endswith(b"\n") for line in file)
            return None if lines == item.lines else f"it has {lines:,} whole lines instead of {item.lines:,}"
    return None
