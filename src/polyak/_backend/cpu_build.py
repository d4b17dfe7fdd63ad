"""The kernels of the CPU, compiled where they run: a second of the machine's own C compiler, once for each version."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

SOURCE = Path(__file__).with_name("cpu_kernels.c")
REALS = {torch.float32: "float", torch.float64: "double"}
FLAGS = ("-O3", "-ffp-contract=off", "-shared", "-fPIC")
WIDE = ("-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mavx2", "-mfma")
PROCESSORS = {"AVX512": WIDE, "AVX2": WIDE[-2:]}  # what torch itself uses here; anything else needs no flag
THREADS = (("-fopenmp",), ())  # not every compiler has them


class Pass(ctypes.Structure):
    """One pass over the memory; `struct pass` of the kernels."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("form", "measured", "threads", "count")),
        ("table", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("x", "u", "v")),
        *((name, ctypes.c_double) for name in ("gamma", "mu")),
    )


@functools.cache
def kernels(dtype: torch.dtype) -> Any:
    """Return the function that makes a pass over tensors of a type; RuntimeError if it cannot be compiled."""
    compiler = shlex.split(os.environ.get("CC", "cc"))
    processor = PROCESSORS.get(torch.backends.cpu.get_cpu_capability(), ())
    said = ""
    for threads in THREADS:
        try:
            library = _library([*compiler, *FLAGS, *processor, *threads, f"-DREAL={REALS[dtype]}"])
        except subprocess.CalledProcessError as error:
            said = error.stderr.strip()
        except OSError as error:
            said = str(error)
        else:
            found = library.polyak_pass
            found.argtypes, found.restype = [ctypes.POINTER(Pass)], ctypes.c_double
            return found
    raise RuntimeError(
        "fused=True needs a C compiler on the CPU, and the command "
        f"{shlex.join(compiler)} did not work ({said.splitlines()[0] if said else 'it said nothing'}): "
        "install one (apt-get install gcc libc6-dev), name another in $CC, or leave fused out."
    )


def _library(command: list[str]) -> ctypes.CDLL:
    """Load the compiled source from the cache, or compile it; where nothing can be kept, for this process alone."""
    source = SOURCE.read_bytes()
    about = "\0".join([*command, sys.platform, platform.machine()]).encode()
    name = f"kernels-{hashlib.sha256(source + about).hexdigest()[:24]}.so"
    try:
        kept = _cache() / name
        kept.parent.mkdir(parents=True, exist_ok=True)
        if not kept.exists():
            with tempfile.TemporaryDirectory(dir=kept.parent) as fresh:  # many processes may come at once
                _compile(command, Path(fresh, name)).replace(kept)
        return ctypes.CDLL(str(kept))
    except (OSError, RuntimeError):
        with tempfile.TemporaryDirectory() as fresh:
            return ctypes.CDLL(str(_compile(command, Path(fresh, name))))


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser(), "polyak", "kernels")


def _compile(command: list[str], out: Path) -> Path:
    subprocess.run([*command, "-o", str(out), str(SOURCE)], check=True, capture_output=True, text=True)
    return out
