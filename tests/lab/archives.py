"""Small archives in the exact formats of the official data sets, with random pixels."""

import gzip
import io
import struct
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

IDX_FILES = {"train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")}
IDX_FILES["test"] = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
CIFAR10_FOLDER, CIFAR100_FOLDER = "cifar-10-batches-py", "cifar-100-python"
MUSHROOM_ROWS = "1 1:1 3:1 5:1\n2 2:1 3:1 4:1\n2 2:1 4:1\n1 1:1 4:1 5:1\n1 1:1 5:1\n"


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(256, size=shape).astype(np.uint8)


def labels(n: int, classes: int = 10) -> list[int]:
    return [i % classes for i in range(n)]


def idx(array: np.ndarray) -> bytes:
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def mnist(folder: Path, train: int = 20, test: int = 10, compressed: bool = True) -> Path:
    """Write the four IDX files of MNIST."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (split, n) in enumerate({"train": train, "test": test}.items()):
        images, targets = IDX_FILES[split]
        for file, array in ((images, pixels(n, 28, 28, seed=seed)), (targets, np.array(labels(n)))):
            write_maybe_compressed(folder / file, idx(array), compressed)
    return folder


def write_maybe_compressed(path: Path, content: bytes, compressed: bool) -> None:
    name, content = (f"{path.name}.gz", gzip.compress(content)) if compressed else (path.name, content)
    path.with_name(name).write_bytes(content)


def python2_pickle(value: Mapping[str, object]) -> bytes:
    """Pickle as cPickle of Python 2 with protocol 2 and NumPy 1 did: strings are bytes, flags are 0 and 1."""
    return b"\x80\x02" + _pickled(value) + b"."


def _pickled(value: object) -> bytes:
    return _PICKLERS[type(value)](value)


def _string(value: str | bytes) -> bytes:
    raw = value.encode("latin1") if isinstance(value, str) else value
    return b"U" + bytes([len(raw)]) + raw if len(raw) < 256 else b"T" + struct.pack("<i", len(raw)) + raw


def _dict(value: Mapping[str, object]) -> bytes:
    return b"}(" + b"".join(_pickled(k) + _pickled(v) for k, v in value.items()) + b"u"


def _array(value: np.ndarray) -> bytes:
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    shape = b"".join(map(_pickled, value.shape)) + b"\x86"
    return empty + b"(K\x01" + shape + dtype + b"\x89" + _string(value.tobytes()) + b"tb"


_PICKLERS = {
    str: _string,
    bytes: _string,
    int: lambda value: b"J" + struct.pack("<i", value),
    list: lambda value: b"](" + b"".join(map(_pickled, value)) + b"e",
    dict: _dict,
    np.ndarray: _array,
}


def cifar10_batch(n: int, seed: int, title: str = "training batch 1 of 5") -> dict[str, object]:
    names = [f"image_{i}.png" for i in range(n)]
    return {"batch_label": title, "labels": labels(n), "data": pixels(n, 3072, seed=seed), "filenames": names}


def cifar10_files(n: int = 10) -> dict[str, bytes]:
    batches = {f"data_batch_{i}": python2_pickle(cifar10_batch(n, seed=i)) for i in range(1, 6)}
    return {**batches, "test_batch": python2_pickle(cifar10_batch(n, 6)), "batches.meta": python2_pickle({})}


def cifar100_batch(n: int, seed: int) -> dict[str, object]:
    fine, coarse = labels(n, 100), labels(n, 20)
    names = [f"image_{i}.png" for i in range(n)]
    data = pixels(n, 3072, seed=seed)
    return {"filenames": names, "batch_label": "1 of 1", "fine_labels": fine, "coarse_labels": coarse, "data": data}


def cifar100_files() -> dict[str, bytes]:
    train, test = (python2_pickle(cifar100_batch(n, seed)) for seed, n in enumerate((120, 100)))
    return {"train": train, "test": test, "meta": python2_pickle({})}


def unpacked(root: Path, folder: str, files: Mapping[str, bytes]) -> Path:
    (root / folder).mkdir(parents=True)
    for name, content in files.items():
        (root / folder / name).write_bytes(content)
    return root / folder


def packed(path: Path, folder: str, files: Mapping[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path
