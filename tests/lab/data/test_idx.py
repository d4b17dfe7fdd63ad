"""MNIST and Fashion-MNIST: small IDX files, every way to damage them, and the real data set."""

import gzip
import hashlib

import numpy as np
import pytest
import torch

from lab import archives
from polyak_lab import data
from polyak_lab.data.idx import FASHION_MNIST
from polyak_lab.errors import LabError

IMAGES, LABELS = archives.IDX_FILES["train"]


@pytest.fixture
def root(tmp_path):
    archives.mnist(tmp_path / "mnist", compressed=False)
    return tmp_path


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_reads_what_was_written(tmp_path, compressed, name):
    archives.mnist(tmp_path / name, train=30, test=12, compressed=compressed)
    loaded = data.load(name, tmp_path)
    assert (loaded.name, loaded.shape, loaded.outputs, loaded.loss) == (name, (1, 28, 28), 10, "cross_entropy")
    assert np.array_equal(loaded.train.inputs[:, 0].numpy(), archives.pixels(30, 28, 28, seed=0))
    assert np.array_equal(loaded.test.inputs[:, 0].numpy(), archives.pixels(12, 28, 28, seed=1))
    assert loaded.train.targets.tolist() == archives.labels(30)
    assert loaded.train.targets.dtype == torch.int64
    assert loaded.mean.item() == pytest.approx(loaded.train.inputs.double().mean().item() / 255)


def test_check_says_that_other_files_are_not_the_official_ones(root):
    sentence = data.check("mnist", root)
    assert "20 + 10 samples" in sentence
    assert f"checksums of {IMAGES}, {LABELS}" in sentence


def cut(content):
    return content[:-1]


def grown(content):
    return content + b"\0"


def wrong_magic(content):
    return b"\x00\x00\x0d" + content[3:]


def wrong_axes(content):
    return archives.idx(np.zeros((20, 28), np.uint8))


def huge(content):
    return content[:4] + b"\xff" * 12 + content[16:]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (cut, "15679 bytes of data instead of 15680"),
        (grown, "15681 bytes of data instead of 15680"),
        (wrong_magic, "begins with 00000d03 instead of 00000803"),
        (wrong_axes, "begins with 00000802 instead of 00000803"),
        (huge, "bytes of data instead of"),
        (lambda content: b"", "begins with nothing"),
        (lambda content: content[:9], "instead of 00000803"),
        (lambda content: gzip.compress(content)[:-20], "damaged"),
        (lambda content: gzip.compress(content)[:10] + b"\xff" * 99, "damaged .*decompressing"),
        (lambda content: gzip.compress(content)[:500] + b"x" * 500, "damaged"),
        (lambda content: archives.idx(np.zeros((19, 28, 28))), "19 images and 20 labels"),
        (lambda content: archives.idx(np.zeros((20, 14, 14))), "14×14 pixels for training and 28×28 for testing"),
    ],
)
def test_damaged_images_are_refused_by_name(root, change, said):
    path = root / "mnist" / IMAGES
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(LabError, match=said) as error:
        data.load("mnist", root)
    assert str(root / "mnist") in str(error.value)
    assert "\n" not in str(error.value)


def test_labels_outside_the_classes_are_refused(root):
    (root / "mnist" / LABELS).write_bytes(archives.idx(np.array([*range(19), 10])))
    with pytest.raises(LabError, match="labels from 0 to 18 instead of 0 to 9"):
        data.load("mnist", root)


def test_empty_data_set_is_refused(root):
    for file, shape in ((IMAGES, (0, 28, 28)), (LABELS, (0,))):
        (root / "mnist" / file).write_bytes(archives.idx(np.zeros(shape)))
    with pytest.raises(LabError, match="0 images and 0 labels"):
        data.load("mnist", root)


def test_missing_file_is_named_and_so_is_what_is_there(root):
    (root / "mnist" / LABELS).unlink()
    with pytest.raises(LabError, match=f"does not hold {LABELS} or {LABELS}.gz but t10k"):
        data.load("mnist", root)


def test_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "holiday.jpg").write_bytes(b"\xff\xd8")
    with pytest.raises(LabError, match=f"does not hold {IMAGES}.* but holiday.jpg"):
        data.load("mnist", tmp_path)


def test_file_that_may_not_be_read_is_refused(root):
    (root / "mnist" / IMAGES).unlink()
    (root / "mnist" / IMAGES).mkdir()  # a folder in the place of a file fails for root too
    (root / "mnist" / IMAGES / "x").touch()
    with pytest.raises(LabError, match=f"Cannot read .*{IMAGES}"):
        data.load("mnist", root)


@pytest.mark.system
def test_real_fashion_mnist_is_official(tmp_path):
    fashion = data.load("fashion-mnist", tmp_path)
    assert (len(fashion.train.inputs), len(fashion.test.inputs)) == (60_000, 10_000)
    assert torch.bincount(fashion.train.targets).tolist() == [6000] * 10
    assert (fashion.mean.item(), fashion.std.item()) == (
        pytest.approx(0.2860, abs=1e-4),
        pytest.approx(0.3530, abs=1e-4),
    )
    assert "every checksum is the official one" in data.check("fashion-mnist", tmp_path)


def test_checksums_are_of_the_contents_in_order():
    content = {file: file.encode() for file in FASHION_MNIST.md5}
    assert list(FASHION_MNIST.md5) == [*archives.IDX_FILES["train"], *archives.IDX_FILES["test"]]
    assert FASHION_MNIST.differing(content) == list(content)
    assert all(len(md5) == len(hashlib.md5(b"").hexdigest()) for md5 in FASHION_MNIST.md5.values())
