"""Reading a pickle of dicts, lists, strings and byte arrays without running anything it names.

A pickle is a program that may call any function. Here the few names that an array needs lead to
inert stand-ins, so that neither Python code nor NumPy's own unpickling sees the content of an
untrusted file; any other name is refused.
"""

import io
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from polyak_lab.data.source import damaged


class _DType:
    """Stands for numpy.dtype: keeps the code and ignores the rest."""

    def __init__(self, code: str | bytes, align: object = False, copy: object = False) -> None:
        self.code = code

    def __setstate__(self, state: object) -> None:
        pass


class _Array:
    """Stands for numpy.ndarray: keeps what NumPy would have been given."""

    state: Any = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def to_numpy(self) -> np.ndarray:
        """Return the array of unsigned bytes, which is the only type that is needed here."""
        _, shape, dtype, column_major, raw = self.state
        if dtype.code not in ("u1", b"u1") or not isinstance(raw, bytes) or len(raw) != math.prod(shape):
            raise pickle.UnpicklingError(f"it holds an array that is not {shape} unsigned bytes")
        return np.frombuffer(raw, np.uint8).reshape(shape, order="F" if column_major else "C")


def _reconstruct(kind: object, shape: object, typecode: object) -> _Array:
    return _Array()


def _encode(text: str, encoding: str) -> bytes:
    # How Python 3 writes bytes in the pickles of Python 2; other codecs are programs too.
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it uses the codec {encoding!r}")
    return text.encode("latin1")


_STAND_INS = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _DType,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("_codecs", "encode"): _encode,
}


class _InertUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise pickle.UnpicklingError(f"it calls {module}.{name}, which is refused")
        return _STAND_INS[module, name]


def read_table(content: bytes, path: Path) -> dict[str, Any]:
    """Return the pickled dict, with text as keys and arrays of bytes as arrays.

    Raises:
        LabError: The content is damaged, is no dict, or names anything but arrays.
    """
    try:
        table = _InertUnpickler(io.BytesIO(content), encoding="bytes").load()
        return {_text(key): _plain(value) for key, value in table.items()}
    except Exception as error:  # a damaged pickle fails in every way there is
        why = str(error) if isinstance(error, pickle.UnpicklingError) else type(error).__name__
        raise damaged(path, why) from error


def _text(key: str | bytes) -> str:
    return key.decode("latin1") if isinstance(key, bytes) else key


def _plain(value: Any) -> Any:
    return value.to_numpy() if isinstance(value, _Array) else value
