"""Deterministic training."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.utils.deterministic


@contextmanager
def deterministic(device: str, threads: int | None) -> Iterator[None]:
    """Make torch deterministic while a run trains, and restore its settings at the end."""
    if device.startswith("cuda"):  # read when cuBLAS is initialised
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    settings: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), settings.fill_uninitialized_memory
    threads_before = torch.get_num_threads()
    torch.use_deterministic_algorithms(True)
    # It costs a write per temporary and changes no result.
    settings.fill_uninitialized_memory = False
    torch.set_num_threads(threads or threads_before)
    try:
        yield
    finally:
        torch.set_num_threads(threads_before)
        torch.use_deterministic_algorithms(before[0])
        settings.fill_uninitialized_memory = before[1]
