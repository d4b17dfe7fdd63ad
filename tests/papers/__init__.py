"""Each paper's pseudo-code in NumPy, written from the paper and not from the library, in the paper's own symbols.

`f(w, t)` returns the loss and the gradient of the mini-batch of step t. A cap may be an array with one entry per
coordinate, for groups of parameters that have caps of their own. `f_star` is the library's `lower_bound` everywhere.
A file holds one transcription, a function of the same name, which is found here: `papers.momo` is that of `momo.py`.
"""

from importlib import import_module
from pkgutil import iter_modules

__all__ = []
for _file in iter_modules(__path__):
    _module = import_module(f"{__name__}.{_file.name}")
    if hasattr(_module, _file.name):  # polar.py holds what a transcription takes
        globals()[_file.name] = getattr(_module, _file.name)
        __all__ += [_file.name]
