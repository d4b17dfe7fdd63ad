"""Compile the CPU kernels with the machine's C compiler at the first use, and cache the library for later processes."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import signal
import stat
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, final

import torch

SOURCE = Path(__file__).with_name("cpu_kernels.c")
C_TYPES = {torch.float32: "float", torch.float64: "double"}
FLAGS = ("-O3", "-ffp-contract=off", "-fno-math-errno", "-shared", "-fPIC")
WIDE = ("-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mavx2", "-mfma")
PROCESSORS = {"AVX512": WIDE, "AVX2": WIDE[-2:]}  # what torch itself uses here; anything else needs no flag
THREADS = (("-fopenmp",), ())  # not every compiler has them
TIME_LIMIT = 120.0  # seconds; the compiler needs two seconds
SIZE_LIMIT = 1 << 26  # bytes of a file that it writes; the library has 50,000
LINKER_FAILED = ("ld returned", "linker command failed")  # of gcc, clang
OTHERS = stat.S_IWGRP | stat.S_IWOTH


class Pass(ctypes.Structure):
    """One pass over the memory; `struct pass` of the kernels."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("form", "measured", "threads", "count")),
        ("table", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("x", "u", "v", "d", "s")),
        *((name, ctypes.c_double) for name in ("gamma", "mu", "decay", "beta", "beta2", "root", "eps")),
        ("more", 3 * ctypes.c_double),
    )


@final
class _CompilerError(Exception):
    """The compiler made no library that can be used; the message says why."""


@functools.cache
def kernels(dtype: torch.dtype) -> Any:
    """Return the function that makes a pass over tensors of a type; RuntimeError if it cannot be compiled."""
    compiler = _compiler()
    processor = PROCESSORS.get(torch.backends.cpu.get_cpu_capability(), ())
    cause = ""
    for threads in THREADS:
        try:
            return _function([*compiler, *FLAGS, *processor, *threads, f"-DREAL={C_TYPES[dtype]}"])
        except _CompilerError as error:
            cause = str(error)
        except subprocess.TimeoutExpired as error:
            cause = f"stopped after {error.timeout:g} s"
            break
        except OSError as error:
            raise RuntimeError(
                f"fused=True cannot store its compiled kernels ({_brief(str(error), 140)}): set $TMPDIR to a folder "
                "that can be written and is not mounted noexec, or leave fused out."
            ) from error
    raise _no_compiler(f"the command {_brief(shlex.join(compiler), 40)} did not work ({_brief(cause, 90)})")


def _no_compiler(cause: str) -> RuntimeError:
    return RuntimeError(
        f"fused=True needs a C compiler on the CPU, and {cause}: install one (apt-get install gcc libc6-dev), "
        "name another in $CC, or leave fused out."
    )


def _compiler() -> list[str]:
    """Return the command of the compiler, `$CC` or `cc`."""
    given = os.environ.get("CC", "cc")
    try:
        command = shlex.split(given)
    except ValueError as error:
        raise _no_compiler(f"CC={_brief(repr(given), 60)} is not a command ({error})") from None
    if not command or not command[0]:
        raise _no_compiler(f"CC={_brief(repr(given), 60)} names no command")
    return command


def _function(command: list[str]) -> Any:
    """Return the kernels' function from the cache; compile it, and fill the cache, if it is not there."""
    cache, key = _cache(), _key(command)
    for library in _cached(cache, key):
        with contextlib.suppress(OSError, _CompilerError):  # built on another machine, or mounted noexec
            return _load(library)
    with tempfile.TemporaryDirectory(prefix="polyak-", ignore_cleanup_errors=True) as folder:
        built = Path(folder, "kernels.so")
        _compile(command, built)
        if cache is not None:
            with contextlib.suppress(OSError):  # full, read-only or noexec
                return _store(built, cache, key)
        return _load(built)


def _key(command: list[str]) -> str:
    """Return what distinguishes this library from those of other versions, compilers and machines."""
    about = "\0".join([*command, sys.platform, platform.machine()]).encode(errors="surrogateescape")
    try:
        return hashlib.sha256(SOURCE.read_bytes() + about).hexdigest()[:24]
    except OSError as error:
        raise RuntimeError(
            f"fused=True cannot read its kernels ({_brief(str(error), 160)}): reinstall polyak, or leave fused out."
        ) from error


def _cache() -> Path | None:
    """Return the folder of compiled libraries; None unless this user, and nobody else, can write there."""
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME", ""))
        if not home.is_absolute():  # to be ignored, says the XDG Base Directory Specification
            home = Path("~/.cache").expanduser()
        folder = home / "polyak" / "kernels"
        if not (folder.is_absolute() and _is_private(folder)):  # before a folder is made in another user's home
            return None
        for missing in reversed([path for path in (folder, *folder.parents) if not path.exists()]):
            missing.mkdir(mode=0o700, exist_ok=True)
        resolved = folder.resolve(strict=True)
        return resolved if _is_private(resolved) and _is_own(resolved.lstat()) else None
    except (OSError, RuntimeError, ValueError):  # RuntimeError: no home directory, or a circle of links
        return None


def _is_private(folder: Path) -> bool:
    """Return whether nobody but root and this user can exchange a part of the path, so far as it exists."""
    for part in (folder, *folder.parents):
        try:
            info = part.lstat()
        except FileNotFoundError:
            continue
        shared = not stat.S_ISLNK(info.st_mode) and info.st_mode & OTHERS and not info.st_mode & stat.S_ISVTX
        if hasattr(os, "geteuid") and (info.st_uid not in (0, os.geteuid()) or shared):
            return False
    return True


def _is_own(info: os.stat_result) -> bool:
    """Return whether a folder or file belongs to this user, who alone can write it."""
    return not hasattr(os, "geteuid") or (info.st_uid == os.geteuid() and not info.st_mode & OTHERS)


def _cached(cache: Path | None, key: str) -> Iterable[Path]:
    """Yield the libraries that are as they were stored; remove any other."""
    for library in sorted(cache.glob(f"kernels-{key}-*.so")) if cache else ():
        try:
            info = library.lstat()
            if stat.S_ISREG(info.st_mode) and _is_own(info) and _digest(library) == library.stem.split("-")[2]:
                yield library
                continue
        except OSError:
            pass
        with contextlib.suppress(OSError):
            library.unlink()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _store(built: Path, cache: Path, key: str) -> Any:
    """Copy a library into the cache, under a name with its digest, and load it; other processes may do so meanwhile."""
    library = cache / f"kernels-{key}-{_digest(built)}.so"
    descriptor, fresh = tempfile.mkstemp(prefix=".kernels-", dir=cache)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(built.read_bytes())
            file.flush()
            os.fsync(file.fileno())
        Path(fresh).replace(library)
    finally:
        Path(fresh).unlink(missing_ok=True)
    try:
        return _load(library)
    except _CompilerError:
        library.unlink(missing_ok=True)
        raise


def _load(library: Path) -> Any:
    """Load a library and return its function."""
    try:
        function = ctypes.CDLL(str(library)).polyak_pass
    except AttributeError:
        raise _CompilerError("its library has no function polyak_pass") from None
    except OSError as error:
        if hasattr(os, "ST_NOEXEC") and os.statvfs(library.parent).f_flag & os.ST_NOEXEC:
            raise OSError(f"{library.parent} is mounted noexec") from error
        raise _CompilerError(f"its library cannot be loaded: {str(error).removeprefix(f'{library}: ')}") from None
    function.argtypes, function.restype = [ctypes.POINTER(Pass)], ctypes.c_double
    return function


def _compile(command: list[str], out: Path) -> None:
    """Run the compiler; nothing it starts outlives the time limit."""
    with tempfile.TemporaryFile() as messages:  # a pipe would be kept open by what the compiler starts
        try:
            process = subprocess.Popen(
                [*command, "-o", str(out), str(SOURCE)],
                stdin=subprocess.DEVNULL,
                stdout=messages,
                stderr=subprocess.STDOUT,
                env={**os.environ, "LC_ALL": "C"},
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            raise _CompilerError(_not_started(command[0], error)) from None
        try:
            _limit_files(process.pid)
            status = process.wait(TIME_LIMIT)
        finally:
            if process.returncode is None:
                _kill(process)
        if status:
            raise _CompilerError(_complaint(messages) or _ended(status))
    if not out.is_file():
        raise _CompilerError("it made no library")
    if not _is_whole(out):
        raise _CompilerError("its library was cut short")


def _is_whole(library: Path) -> bool:
    """Return whether a file in the format ELF has its end: loading a part of a library would kill this process."""
    with library.open("rb") as file:
        head = file.read(64)
    if len(head) < 64 or head[:5] != b"\x7fELF\x02":  # which the loader refuses, or which is no ELF file of 64 bits
        return True
    order = "<" if head[5] == 1 else ">"
    sections, size, count = *struct.unpack_from(f"{order}Q", head, 40), *struct.unpack_from(f"{order}2H", head, 58)
    return bool(sections + size * count <= library.stat().st_size)


def _limit_files(pid: int) -> None:
    """Limit the files that a process writes, so that endless messages do not fill the disk."""
    with contextlib.suppress(ImportError, AttributeError, OSError, ValueError):  # Linux alone has it
        import resource

        resource.prlimit(pid, resource.RLIMIT_FSIZE, (SIZE_LIMIT, SIZE_LIMIT))


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the compiler and what it started."""
    with contextlib.suppress(AttributeError, OSError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()


def _not_started(program: str, error: Exception) -> str:
    if isinstance(error, PermissionError) and Path(program).is_dir():
        return "it is a folder"
    return getattr(error, "strerror", None) or str(error)


def _ended(status: int) -> str:
    return f"killed by signal {-status}" if status < 0 else f"exit status {status}, without a message"


def _complaint(messages: IO[bytes]) -> str:
    """Return the compiler's first error, the linker's last line, or the first line."""
    messages.seek(0)
    lines = [line.strip() for line in messages.read(1 << 16).decode(errors="replace").splitlines() if line.strip()]
    errors = [i for i, line in enumerate(lines) if "error" in line.lower()]
    if errors and any(words in lines[errors[0]] for words in LINKER_FAILED):  # the cause stands above
        return lines[max(errors[0] - 1, 0)]
    return lines[errors[0] if errors else 0] if lines else ""


def _brief(text: str, length: int) -> str:
    """Return a text on one line, cut to a length."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= length else f"{line[: length - 1]}…"
