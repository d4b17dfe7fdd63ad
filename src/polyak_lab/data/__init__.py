"""Data sets as tensors: `load` one by name, `fetch` its files, `check` those on the disk."""

from polyak_lab.data.catalogue import NAMES, check, describe, fetch, load, load_chosen, resolve
from polyak_lab.data.dataset import Dataset, Split
from polyak_lab.data.places import default_root
from polyak_lab.data.streamed import Streamed

__all__ = [
    "NAMES",
    "Dataset",
    "Split",
    "Streamed",
    "check",
    "default_root",
    "describe",
    "fetch",
    "load",
    "load_chosen",
    "resolve",
]
