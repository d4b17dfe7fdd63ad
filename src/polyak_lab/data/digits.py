"""Optical Recognition of Handwritten Digits (UCI), 8×8 pixels, bundled with the package."""

from pathlib import Path

import numpy as np

from polyak_lab.data.dataset import Dataset
from polyak_lab.data.images import classification, labelled
from polyak_lab.data.source import Contents, Source, read_file

FILE = Path(__file__).with_name("digits.csv.gz")
TRAIN = 1437


def parse(contents: Contents, place: Path) -> Dataset:
    """Split the 1,797 images in the order of the file: the first 1,437 (80 %) train, the last 360 test.

    The digits of its 13 writers come one writer after the other, so this split tests mostly on
    hands that were not trained on: harder than a shuffled split, and closer to use. Pixel values
    0..16 become 0..255.
    """
    table = np.loadtxt(contents[FILE.name].decode().splitlines(), delimiter=",", dtype=np.int64)
    images = np.rint(table[:, :64] * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    labels = table[:, 64]
    train = labelled(images[:TRAIN], labels[:TRAIN], 10, place)
    return classification("digits", train, labelled(images[TRAIN:], labels[TRAIN:], 10, place), 10)


DIGITS = Source(
    name="digits",
    kind="1,797 images 1×8×8, 10 classes",
    how="in the package (UCI, CC BY 4.0)",
    find=lambda root: FILE,
    open=lambda place: {FILE.name: read_file(place)},
    parse=parse,
    md5={FILE.name: "a0339c30a8a5312a1b6f9e5c719dcce5"},
)
