"""Two-class problems in the text format of LIBSVM; here the UCI Mushroom data."""

from pathlib import Path

import numpy as np
import torch

from polyak_lab.data.dataset import Dataset, Split
from polyak_lab.data.fetch import Download
from polyak_lab.data.source import Contents, Source, damaged, first_existing, missing, read_file

SPLIT_SEED = 0
TRAIN_SHARE = 0.8
SAMPLES = 8124
_MOST_FEATURES = 1_000_000  # a larger index is a damaged line
_MOST_NUMBERS = 1 << 28  # of all vectors together, 1 GiB: more would fill the memory
_LARGEST = float(np.finfo(np.float32).max)

Row = tuple[float, dict[int, float]]


def open_place(place: Path) -> Contents:
    """Read train.svm and test.svm of a folder, or the one file `mushrooms`."""
    if place.is_file():
        return {"mushrooms": read_file(place)}
    if (place / "mushrooms").is_file():
        return open_place(place / "mushrooms")
    for name in ("train.svm", "test.svm"):
        if not (place / name).is_file():
            raise missing(place, f"{name} or mushrooms")
    return {name: read_file(place / name) for name in ("train.svm", "test.svm")}


def parse(contents: Contents, place: Path) -> Dataset:
    """Return vectors with targets ±1, the smaller of the two labels being −1.

    One file alone is split 80/20 by `numpy.random.RandomState(0)`, whose stream never changes.
    """
    parts = [parse_rows(content, _path(place, name)) for name, content in contents.items()]
    labels, vectors = _dense([row for part in parts for row in part], place)
    signs = _signs(labels, place)
    which = _train_and_test([len(part) for part in parts])
    train, test = (Split(vectors[rows], signs[rows]) for rows in which)
    return Dataset("mushrooms", train, test, outputs=1, loss="logistic")


def _path(place: Path, name: str) -> Path:
    return place if place.is_file() else place / name


def parse_rows(content: bytes, path: Path) -> list[Row]:
    """Return label and features of every line `label index:value ...`; indices start at 1."""
    lines = content.decode("ascii", errors="replace").splitlines()
    texts = [(number, line.partition("#")[0].split()) for number, line in enumerate(lines, 1)]
    rows = [_row(fields, number, path) for number, fields in texts if fields]
    if not rows:
        raise damaged(path, "it has no rows")
    return rows


def _row(fields: list[str], number: int, path: Path) -> Row:
    try:
        pairs = [field.split(":") for field in fields[1:]]
        row = float(fields[0]), {int(index): float(value) for index, value in pairs}
    except ValueError as error:
        raise damaged(path, f"line {number} is not 'label index:value ...'") from error
    _, features = row
    if len(features) < len(pairs) or not all(1 <= index <= _MOST_FEATURES for index in features):
        raise damaged(path, f"line {number} has an index below 1, above {_MOST_FEATURES} or twice")
    if not all(abs(value) <= _LARGEST for value in (row[0], *features.values())):
        raise damaged(path, f"line {number} has a value that is not finite in float32")
    return row


def _dense(rows: list[Row], place: Path) -> tuple[np.ndarray, torch.Tensor]:
    width = max((index for _, features in rows for index in features), default=0)
    if width == 0:
        raise damaged(place, "no line has a feature")
    if len(rows) * width > _MOST_NUMBERS:
        raise damaged(place, f"{len(rows):,} lines and an index of {width:,} make more than {_MOST_NUMBERS:,} numbers")
    vectors = np.zeros((len(rows), width), np.float32)
    for vector, (_, features) in zip(vectors, rows, strict=True):
        vector[[index - 1 for index in features]] = list(features.values())
    return np.array([label for label, _ in rows]), torch.from_numpy(vectors)


def _signs(labels: np.ndarray, place: Path) -> torch.Tensor:
    values = np.unique(labels)
    if len(values) != 2:
        raise damaged(place, f"{len(values)} different labels instead of 2")
    return torch.from_numpy(np.where(labels == values[1], 1.0, -1.0).astype(np.float32))


def _train_and_test(sizes: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rows of each split: as the two files say, or a fixed permutation of one file."""
    total = sum(sizes)
    order, first = np.arange(total), sizes[0]
    if len(sizes) == 1:
        order, first = np.random.RandomState(SPLIT_SEED).permutation(total), int(TRAIN_SHARE * total)
    which = torch.from_numpy(order)
    return which[:first], which[first:]


MUSHROOMS = Source(
    name="mushrooms",
    kind="8,124 sparse vectors, 2 classes, separable",
    how="polyak data fetch mushrooms (UCI, CC BY 4.0)",
    find=lambda root: first_existing([root / "mushrooms"]),
    open=open_place,
    parse=parse,
    downloads=(Download("https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/binary/mushrooms", lines=SAMPLES),),
    samples=SAMPLES,
)
