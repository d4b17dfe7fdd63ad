"""A folder of images: train/CLASS/*.png and test/CLASS/*.png, or CLASS/*.png, of which every fifth is for testing.

The images are ordered by the names of their files, and those of one name by their class. They are
decoded once, to greyscale if all are greyscale and to RGB otherwise, and kept below
`default_root()`; a file that is added, removed or written again is decoded again.
"""

import hashlib
import io
import json
import pickle
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from polyak_lab.data.dataset import Dataset
from polyak_lab.data.images import classification, labelled
from polyak_lab.data.places import default_root
from polyak_lab.data.source import Contents, Source
from polyak_lab.errors import LabError, RowError
from polyak_lab.files import write_atomic

ENDINGS = {".png", ".jpg", ".jpeg"}
EVERY = 5
GREY = {"L", "1"}
FORMAT = 1
Part = list[tuple[Path, int]]
"""The files of a part in their order, with the number of their class."""


class Listing(NamedTuple):
    """The files of a folder, and the names of its classes."""

    train: Part
    test: Part
    classes: list[str]


def list_files(root: Path) -> Listing:
    """Find the images of both parts.

    Raises:
        RowError: A class is empty, or only in one of the parts.
    """
    with _explained(root):
        if not root.is_dir():
            raise RowError(f"{root} is no folder: data 'folder' needs one that holds train/CLASS/*.png.")
        if not (root / "train").is_dir():
            return _split(root)
        classes = _classes(root / "train")
        test = _files(root / "test", _classes(root / "test"))
        for name in test.keys() - set(classes):
            raise RowError(f"{root / 'test' / name} is a class without training images: {root / 'train'} lacks it.")
        return Listing(_ordered(_files(root / "train", classes), classes), _ordered(test, classes), classes)


@contextmanager
def _explained(root: Path) -> Iterator[None]:
    """Turn an OSError, such as that of a folder without permission, into a RowError that names it."""
    try:
        yield
    except OSError as error:
        raise RowError(f"Cannot read {error.filename or root}: {error.strerror or error}.") from error


def _split(root: Path) -> Listing:
    """Test on every fifth file of a class, in the order of their names."""
    classes = _classes(root)
    train: dict[str, list[Path]] = {}
    test: dict[str, list[Path]] = {}
    for name, files in _files(root, classes).items():
        if len(files) < EVERY:
            raise RowError(f"{root / name} has {len(files)} images: the split needs {EVERY}, or make train/ and test/.")
        test[name] = files[EVERY - 1 :: EVERY]
        train[name] = [file for i, file in enumerate(files) if i % EVERY != EVERY - 1]
    return Listing(_ordered(train, classes), _ordered(test, classes), classes)


def _classes(part: Path) -> list[str]:
    if not part.is_dir():
        raise RowError(f"There is no {part}: data 'folder' needs train/CLASS/*.png and test/CLASS/*.png in its root.")
    found = sorted(place.name for place in part.iterdir() if place.is_dir() and not place.name.startswith("."))
    if not found:
        raise RowError(f"{part} has no folders: put the images of each class into a folder of its own.")
    return found


def _files(part: Path, classes: Sequence[str]) -> dict[str, list[Path]]:
    found = {}
    for name in classes:
        places = (part / name).iterdir()
        found[name] = sorted(p for p in places if p.suffix.lower() in ENDINGS and not p.name.startswith("."))
        if not found[name]:
            raise RowError(f"{part / name} has no images (.png, .jpg or .jpeg): remove the folder, or fill it.")
    return found


def _ordered(files: Mapping[str, list[Path]], classes: Sequence[str]) -> Part:
    labels = {name: i for i, name in enumerate(classes)}
    pairs = [(path, labels[name]) for name, paths in files.items() for path in paths]
    return sorted(pairs, key=lambda pair: (pair[0].name, pair[1]))


def read(root: Path) -> tuple[Dataset, str]:
    """Read a folder, from what was decoded before if it is unchanged; return it and the SHA-256 of its content."""
    listing = list_files(root)
    cached = default_root() / "folders" / f"{_key(root, listing)}.pt"
    content = _load(cached) or _decode_and_store(listing, cached)
    classes = len(listing.classes)
    train, test = (labelled(content[part].numpy(), content[f"{part}_labels"].numpy(), classes, root) for part in PARTS)
    return classification("folder", train, test, classes), content["sha256"]


PARTS = ("train", "test")


def _key(root: Path, listing: Listing) -> str:
    """Return a hash of where the files are, how large they are and when they were written."""
    described = []
    for path, label in (*listing.train, *listing.test):
        try:
            status = path.stat()
        except OSError as error:  # such as a link to nowhere
            raise RowError(f"{path} cannot be read ({error.strerror or error}): remove or replace it.") from error
        described.append((str(path.relative_to(root)), label, status.st_size, status.st_mtime_ns))
    text = json.dumps([FORMAT, str(root.resolve()), len(listing.train), described])
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:32]


def _decode_and_store(listing: Listing, cached: Path) -> dict[str, Any]:
    content: dict[str, Any] = {}
    files = [path for part in (listing.train, listing.test) for path, _ in part]
    images = _decode(files)
    content["train"], content["test"] = images.split([len(listing.train), len(listing.test)])
    for name, part in zip(PARTS, (listing.train, listing.test), strict=True):
        content[name] = content[name].clone()
        content[f"{name}_labels"] = torch.tensor([label for _, label in part])
    content["sha256"] = _digest(content)
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with suppress(LabError, OSError):  # a folder that cannot be written to: it is decoded again
        cached.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(cached, buffer.getvalue())
    return content


def _load(cached: Path) -> dict[str, Any] | None:
    """Load what was decoded before; None if there is nothing, or if it is damaged."""
    try:
        content: dict[str, Any] = torch.load(cached, weights_only=True)
        return content if content["sha256"] == _digest(content) else None
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, EOFError):
        return None
    except (pickle.UnpicklingError, zipfile.BadZipFile):
        return None


def _digest(content: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    for part in PARTS:
        digest.update(str(tuple(content[part].shape)).encode())
        digest.update(content[part].numpy().tobytes())
        digest.update(content[f"{part}_labels"].numpy().tobytes())
    return digest.hexdigest()


def _decode(files: Sequence[Path]) -> Tensor:
    """Decode images (n, channels, height, width); all must have one size."""
    with ThreadPoolExecutor() as pool:  # libpng and libjpeg release the interpreter's lock
        images = list(pool.map(_open, files))
    mode = "L" if all(image.mode in GREY for image in images) else "RGB"
    size = images[0].size
    for path, image in zip(files, images, strict=True):
        if image.size != size:
            given, wanted = (f"{width}×{height}" for width, height in (image.size, size))
            raise RowError(f"{path} is {given} pixels large, but {files[0]} {wanted}: resize all to one size.")
    pixels = np.stack([np.asarray(image.convert(mode)) for image in images])
    pixels = pixels[:, None] if mode == "L" else pixels.transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(pixels))


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
            if image.mode.startswith(("I", "F")):  # to convert them would clip them
                raise ValueError("its channels have more than 8 bits")
            return image.copy()
    except Exception as error:  # Pillow raises OSError, ValueError, SyntaxError and errors of its own
        reason = " ".join(str(error).split()).replace(repr(str(path)), "it").rstrip(".")[:100]
        raise RowError(f"{path} cannot be read as an image ({reason}): remove or replace it.") from error


def _parse(_: Contents, place: Path) -> Dataset:
    return read(place)[0]


FOLDER = Source(
    name="folder",
    kind="images in a folder for each class",
    how='your own images: data = { name = "folder", root = "images" }',
    find=lambda root: root if root.exists() else None,
    open=lambda place: {},
    parse=_parse,
    needs_root=True,
    digest=lambda place: read(place)[1],
)
