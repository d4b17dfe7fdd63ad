"""MNIST and Fashion-MNIST in the IDX format of their authors, compressed or not."""

import math
import struct
from functools import partial
from pathlib import Path

import numpy as np

from polyak_lab.data.dataset import Dataset, Split
from polyak_lab.data.fetch import Download
from polyak_lab.data.images import classification, labelled
from polyak_lab.data.source import Contents, Source, damaged, first_existing, missing, read_file

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_UNSIGNED_BYTE = 8


def candidates(folder: Path, file: str) -> tuple[Path, Path]:
    """Return where a file may be: as it is, or compressed."""
    return folder / file, folder / f"{file}.gz"


def find(folders: tuple[Path, ...]) -> Path | None:
    """Return the first folder with an IDX file, else the first with anything in it."""
    with_images = (f for f in folders if any(path.is_file() for path in candidates(f, FILES[0])))
    return next(with_images, None) or first_existing(folders)


def open_folder(place: Path) -> Contents:
    """Read the four files of a folder."""
    return {file: _read_either(place, file) for file in FILES}


def _read_either(place: Path, file: str) -> bytes:
    path = first_existing(candidates(place, file))
    if path is None:
        raise missing(place, f"{file} or {file}.gz")
    return read_file(path)


def parse(contents: Contents, place: Path, name: str) -> Dataset:
    """Return the images as (n, 1, H, W) with their labels 0..9."""
    train, test = (_split(contents, place, *files) for files in (FILES[:2], FILES[2:]))
    if train.inputs.shape[1:] != test.inputs.shape[1:]:
        raise damaged(place, f"images of {_size(train)} pixels for training and {_size(test)} for testing")
    return classification(name, train, test, 10)


def _split(contents: Contents, place: Path, images: str, labels: str) -> Split:
    pixels = parse_idx(contents[images], 3, place / images)
    return labelled(pixels[:, None], parse_idx(contents[labels], 1, place / labels), 10, place / labels)


def _size(split: Split) -> str:
    return "×".join(map(str, split.inputs.shape[2:]))


def parse_idx(content: bytes, axes: int, path: Path) -> np.ndarray:
    """Return the unsigned bytes of an IDX file with so many axes.

    The format: two zero bytes, the type (8: unsigned byte), the number of axes, each length as a
    big-endian 32-bit integer, and the values, the last axis fastest.
    """
    magic = bytes((0, 0, _UNSIGNED_BYTE, axes))
    start = 4 + 4 * axes
    if content[:4] != magic or len(content) < start:
        raise damaged(path, f"it begins with {content[:4].hex() or 'nothing'} instead of {magic.hex()}")
    lengths = struct.unpack_from(f">{axes}I", content, 4)
    if len(content) - start != math.prod(lengths):
        raise damaged(path, f"{len(content) - start} bytes of data instead of {math.prod(lengths)}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(lengths)


def _source(
    name: str,
    url: str,
    how: str,
    contents: str,
    archives: str,
    folders: tuple[Path, ...] = (),
) -> Source:
    """Make a source from the MD5 sums of its four contents and four compressed files."""
    return Source(
        name=name,
        kind="60,000 + 10,000 images 1×28×28, 10 classes",
        how=how,
        find=lambda root: find((root / name, *folders)),
        open=open_folder,
        parse=partial(parse, name=name),
        md5=dict(zip(FILES, contents.split(), strict=True)),
        downloads=tuple(Download(f"{url}{f}.gz", md5) for f, md5 in zip(FILES, archives.split(), strict=True)),
    )


MNIST = _source(
    "mnist",
    url="https://ossci-datasets.s3.amazonaws.com/mnist/",
    how="polyak data fetch mnist",
    contents="""6bbc9ace898e44ae57da46a324031adb a25bea736e30d166cdddb491f175f624
                2646ac647ad5339dbf082846283269ea 27ae3e4e09519cfbb04c329615203637""",
    archives="""f68b3c2dcbeaaa9fbdd348bbdeb94873 d53e105ee54ea40749a09fcbcd1e9432
                9fb629c4189551a2d022fa330f9573f3 ec29112dd5afa0611ce80d1b7f02629c""",
)
FASHION_MNIST = _source(
    "fashion-mnist",
    url="https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    how="polyak data fetch fashion-mnist, or Debian's package dataset-fashion-mnist",
    contents="""f4a8712d7a061bf5bd6d2ca38dc4d50a 9018921c3c673c538a1fc5bad174d6f9
                8181f5470baa50b63fa0f6fddb340f0a 15d484375f8d13e6eb1aabb0c3f46965""",
    archives="""8d4fb7e6c68d591d4c3dfef9ec88bf0d 25c81989df183df01b3e8a0aad5dffbe
                bef4ecab320f06d8554ea6380940ec79 bb300cfdad3c16e7a12a480ee83cd310""",
    folders=(Path("/usr/share/datasets/fashion-mnist"),),
)
