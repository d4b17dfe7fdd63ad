"""Imports torch before anything else does; without NumPy, torch warns at that moment about what polyak never uses."""

import warnings

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="Failed to initialize NumPy")
    import torch

__all__ = ["torch"]
