"""Data sets as tensors: `load` one by name, `fetch` its files, `check` those on the disk."""

from polyak_lab.data.catalogue import NAMES, check, default_root, describe, fetch, load, resolve
from polyak_lab.data.dataset import Dataset, Split

__all__ = ["NAMES", "Dataset", "Split", "check", "default_root", "describe", "fetch", "load", "resolve"]
