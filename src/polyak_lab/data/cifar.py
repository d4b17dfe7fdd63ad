"""CIFAR-10 and CIFAR-100 from their official archives for Python, packed or unpacked."""

import io
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from polyak_lab.data.dataset import Dataset, Split
from polyak_lab.data.fetch import Download
from polyak_lab.data.images import labelled
from polyak_lab.data.source import (
    LARGEST,
    Contents,
    Source,
    damaged,
    first_existing,
    missing,
    read_file,
)
from polyak_lab.data.unpickle import read_table

# The constants that the code of Loizou et al. (2021), github.com/IssamLaradji/sps, uses for both data sets. The note
# on ALI-G ran that code, so its figures rest on them. (0.2023 ... is the mean deviation within an image.)
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2023, 0.1994, 0.2010)


@dataclass(frozen=True)
class Layout:
    """Names and keys by which the two archives differ."""

    name: str
    classes: int
    archive: str
    folder: str
    train: tuple[str, ...]
    test: str
    labels: str

    def find(self, root: Path) -> Path | None:
        """Return the folder or archive, which may lie in root/NAME or in the root itself."""
        places = [base / file for base in (root / self.name, root) for file in (self.folder, self.archive)]
        return first_existing([*places, root / self.name])

    def open(self, place: Path) -> Contents:
        """Read the files that hold images."""
        files = (*self.train, self.test)
        contents = self._unpack(place) if place.is_file() else self._read(place)
        for file in files:
            if file not in contents:
                raise missing(place, f"{self.folder}/{file}")
        return {file: contents[file] for file in files}

    def _read(self, place: Path) -> Contents:
        paths = [place / file for file in (*self.train, self.test)]
        return {path.name: read_file(path) for path in paths if path.is_file()}

    def _unpack(self, place: Path) -> Contents:
        wanted = {f"{self.folder}/{file}" for file in (*self.train, self.test)}
        # Decompressed first: tarfile would stop before the checksum at the end of the file.

        content = io.BytesIO(read_file(place))
        try:
            with tarfile.open(fileobj=content, mode="r:") as archive:
                members = [member for member in archive if member.name in wanted and member.isfile()]
                # A sparse file can claim any size.
                if sum(member.size for member in members) > LARGEST:
                    raise damaged(place, f"it unpacks to more than {LARGEST:,} bytes")
                streams = {Path(member.name).name: archive.extractfile(member) for member in members}
                return {name: stream.read() for name, stream in streams.items() if stream is not None}
        except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
            raise damaged(place, str(error)) from error

    def parse(self, contents: Contents, place: Path) -> Dataset:
        """Return the images as (n, 3, 32, 32) with their (fine) labels."""
        parts = [self._split(contents[file], place / file) for file in self.train]
        train = Split(torch.cat([p.inputs for p in parts]), torch.cat([p.targets for p in parts]))
        test = self._split(contents[self.test], place / self.test)
        return Dataset(self.name, train, test, self.classes, "cross_entropy", torch.tensor(MEAN), torch.tensor(STD))

    def _split(self, content: bytes, path: Path) -> Split:
        table = read_table(content, path)
        return labelled(_images(table, path), _labels(table, self.labels, path), self.classes, path)


def _images(table: dict[str, Any], path: Path) -> np.ndarray:
    """Return the rows of 1024 red, 1024 green and 1024 blue values as images."""
    rows = table.get("data")
    if not isinstance(rows, np.ndarray) or rows.shape[1:] != (3072,):
        raise damaged(path, "it has no rows of 3072 bytes under 'data'")
    return rows.reshape(-1, 3, 32, 32)


def _labels(table: dict[str, Any], key: str, path: Path) -> np.ndarray:
    labels = table.get(key)
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise damaged(path, f"it has no list of integers under {key!r}")
    return np.array(labels)


def _source(layout: Layout, kind: str, archive_md5: str, md5: str) -> Source:
    """Make a source from the MD5 sums of its archive and of the files with images, in order."""
    return Source(
        name=layout.name,
        kind=kind,
        how=f"polyak data fetch {layout.name} (about 170 MB)",
        find=layout.find,
        open=layout.open,
        parse=layout.parse,
        md5=dict(zip((*layout.train, layout.test), md5.split(), strict=True)),
        downloads=(Download(f"https://www.cs.toronto.edu/~kriz/{layout.archive}", archive_md5),),
    )


CIFAR10 = _source(
    Layout(
        name="cifar10",
        classes=10,
        archive="cifar-10-python.tar.gz",
        folder="cifar-10-batches-py",
        train=tuple(f"data_batch_{i}" for i in range(1, 6)),
        test="test_batch",
        labels="labels",
    ),
    "50,000 + 10,000 images 3×32×32, 10 classes",
    "c58f30108f718f92721af3b95e74349a",
    """c99cafc152244af753f735de768cd75f d4bba439e000b95fd0a9bffe97cbabec 54ebc095f3ab1f0389bbae665268c751
       634d18415352ddfa80567beed471001a 482c414d41f54cd18b22e5b47cb7c3cb 40351d587109b95175f43aff81a1287e""",
)
CIFAR100 = _source(
    Layout(
        name="cifar100",
        classes=100,
        archive="cifar-100-python.tar.gz",
        folder="cifar-100-python",
        train=("train",),
        test="test",
        labels="fine_labels",
    ),
    "50,000 + 10,000 images 3×32×32, 100 classes",
    "eb9058c3a382ffc7106e4002c42a8d85",
    "16019d7e3df5f24257cddd939b257f8d f0ef6b0ae62326f3e7ffdfab6717acfc",
)
