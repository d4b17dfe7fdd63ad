"""How vectors are measured and moved: devices, types, kernels, processes."""

from __future__ import annotations

from functools import cache
from typing import Any


@cache
def cuda_backend() -> Any:
    """Return the module of the kernels of CUDA, or None without a Triton that fits."""
    try:
        from . import cuda
    except Exception:  # which an installation that does not fit may raise at the import
        return None
    return cuda
