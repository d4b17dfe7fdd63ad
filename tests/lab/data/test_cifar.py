"""CIFAR-10 and CIFAR-100: packed and unpacked archives, and pickles that should not be trusted."""

import codecs
import gzip
import os
import pickle

import numpy as np
import pytest
import torch

from lab import archives
from polyak_lab import data
from polyak_lab.data.cifar import CIFAR10, CIFAR100
from polyak_lab.data.source import md5_of
from polyak_lab.errors import LabError

ARCHIVES = {"cifar10": "cifar-10-python.tar.gz", "cifar100": "cifar-100-python.tar.gz"}
FILES = {"cifar10": archives.cifar10_files, "cifar100": archives.cifar100_files}
FOLDERS = {"cifar10": archives.CIFAR10_FOLDER, "cifar100": archives.CIFAR100_FOLDER}


@pytest.fixture
def folder(tmp_path):
    return archives.unpacked(tmp_path, archives.CIFAR10_FOLDER, archives.cifar10_files())


def place_unpacked(root, name):
    archives.unpacked(root, FOLDERS[name], FILES[name]())


def place_packed(root, name):
    archives.packed(root / ARCHIVES[name], FOLDERS[name], FILES[name]())


@pytest.mark.parametrize("below", ["", "own folder"])
@pytest.mark.parametrize("place", [place_unpacked, place_packed])
@pytest.mark.parametrize(("name", "sizes", "classes"), [("cifar10", (50, 10), 10), ("cifar100", (120, 100), 100)])
def test_reads_what_was_written(tmp_path, name, sizes, classes, place, below):
    place(tmp_path / name if below else tmp_path, name)
    loaded = data.load(name, tmp_path)
    assert (loaded.name, loaded.shape, loaded.outputs) == (name, (3, 32, 32), classes)
    assert (len(loaded.train.inputs), len(loaded.test.inputs)) == sizes
    assert (loaded.train.inputs.dtype, loaded.train.targets.dtype) == (torch.uint8, torch.int64)
    assert loaded.test.targets.tolist() == archives.labels(sizes[1], classes)
    assert loaded.mean.shape == loaded.std.shape == (3,)


def test_batches_keep_their_order_and_planes_their_colour(folder):
    train = data.load("cifar10", folder.parent).train.inputs
    for i in range(1, 6):
        rows = torch.from_numpy(archives.pixels(10, 3072, seed=i))
        batch = train[10 * (i - 1) : 10 * i]
        assert torch.equal(batch[:, 0].flatten(1), rows[:, :1024])
        assert torch.equal(batch[:, 2, 31], rows[:, 3040:])


def test_fine_labels_are_read_not_coarse(tmp_path):
    place_unpacked(tmp_path, "cifar100")
    assert data.load("cifar100", tmp_path).train.targets.max() == 99


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("as_key", [str, str.encode])
def test_copies_written_by_python_3_are_read(folder, protocol, order, as_key):
    rows = archives.pixels(10, 3072, seed=9)
    table = {as_key("labels"): archives.labels(10), as_key("data"): np.asarray(rows, order=order)}
    (folder / "test_batch").write_bytes(pickle.dumps(table, protocol))
    images = data.load("cifar10", folder.parent).test.inputs
    assert torch.equal(images.flatten(1), torch.from_numpy(rows))


@pytest.mark.filterwarnings("ignore:dtype")  # NumPy 2.4 itself complains of the flags that Python 2 wrote
def test_small_archives_are_what_numpy_takes_for_official_ones():
    table = pickle.loads(archives.cifar10_files()["test_batch"], encoding="latin1")
    assert np.array_equal(table["data"], archives.pixels(10, 3072, seed=6))
    assert table["labels"] == archives.labels(10)


def test_check_tells_the_official_files_from_others(folder, monkeypatch):
    sentence = data.check("cifar10", folder.parent)
    assert "50 + 10 samples of shape 3×32×32" in sentence
    assert "checksums of data_batch_1, data_batch_2" in sentence
    for file in CIFAR10.md5:
        monkeypatch.setitem(CIFAR10.md5, file, md5_of((folder / file).read_bytes()))
    assert "every checksum is the official one" in data.check("cifar10", folder.parent)
    (folder / "data_batch_3").write_bytes(archives.python2_pickle(archives.cifar10_batch(10, seed=30)))
    assert "checksums of data_batch_3 differ" in data.check("cifar10", folder.parent)


def test_checksums_of_the_official_archives():
    assert [item.md5 for item in CIFAR10.downloads] == ["c58f30108f718f92721af3b95e74349a"]
    assert [item.md5 for item in CIFAR100.downloads] == ["eb9058c3a382ffc7106e4002c42a8d85"]


class Malicious:
    """Runs a function when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_pickle_that_runs_a_command_is_refused_and_nothing_runs(folder, tmp_path, protocol):
    witness = tmp_path / "ran"
    attack = Malicious(os.mkdir, str(witness))
    (folder / "data_batch_2").write_bytes(pickle.dumps({"labels": attack}, protocol))
    with pytest.raises(LabError, match=r"data_batch_2 .*posix.mkdir, which is refused"):
        data.load("cifar10", folder.parent)
    assert not witness.exists()


@pytest.mark.parametrize(
    "opcodes",
    [
        b"cbuiltins\neval\n(U\x011tR.",
        b"c__builtin__\neval\n(U\x011tR.",
        b"cnumpy\nload\n(U\x011tR.",
        b"cnumpy.core.multiarray\nfromfile\n(U\x011tR.",
        b"cnumpy\nndarray.tofile\n.",
        b"\x80\x04\x8c\x0anumpy.core\x8c\x06rename\x93.",
        b"cnumpy\ndtype\n(U\x02O8K\x00K\x01tR.",
        b"(iposix\nsystem\n.",
        b"Psomewhere\n.",
        b"\x80\x04\x8c\x03a\nb\x8c\x01c\x93.",
        b"\x82\x01.",
    ],
)
def test_only_arrays_may_be_named(folder, opcodes):
    (folder / "test_batch").write_bytes(opcodes)
    with pytest.raises(LabError, match="test_batch is damaged or not what its name says") as error:
        data.load("cifar10", folder.parent)
    assert "\n" not in str(error.value)


def test_codecs_are_programs_too(folder):
    (folder / "test_batch").write_bytes(pickle.dumps({"labels": Malicious(codecs.encode, "1", "rot13")}, 2))
    with pytest.raises(LabError, match="it uses the codec 'rot13'"):
        data.load("cifar10", folder.parent)


def batch(**changes):
    return archives.python2_pickle({**archives.cifar10_batch(10, seed=0), **changes})


def objects():
    """Return a batch whose array is one of objects, with the right length."""
    return batch().replace(b"U\x02u1", b"U\x02O8")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (batch()[:-1], "EOFError"),
        (batch()[:5000], "truncated"),
        (b"", "EOFError"),
        (b"<!DOCTYPE html>", "test_batch"),
        (archives.python2_pickle([1, 2]), "AttributeError"),
        (objects(), "not .* unsigned bytes"),
        (batch().replace(b"J\x00\x0c\x00\x00\x86", b"J\x01\x0c\x00\x00\x86"), "not .* unsigned bytes"),
        (batch(labels=list(range(1, 11))), "labels from 1 to 10 instead of 0 to 9"),
        (batch(labels=[-1] * 10), "labels from -1 to -1"),
        (batch(labels=[0] * 9), "10 images and 9 labels"),
        (batch(labels=["cat"] * 10), "no list of integers under 'labels'"),
        (batch(labels="0123456789"), "no list of integers under 'labels'"),
        (batch(data=archives.pixels(10, 784)), "no rows of 3072 bytes"),
        (batch(data=[1, 2, 3]), "no rows of 3072 bytes"),
        (archives.python2_pickle({"data": archives.pixels(1, 3072)}), "no list of integers"),
        (archives.python2_pickle({}), "no rows of 3072 bytes"),
    ],
)
def test_damaged_batch_is_refused_by_name(folder, content, said):
    (folder / "test_batch").write_bytes(content)
    with pytest.raises(LabError, match=said) as error:
        data.load("cifar10", folder.parent)
    assert str(folder / "test_batch") in str(error.value)


def test_cifar100_in_the_name_of_cifar10_is_refused(tmp_path):
    archives.packed(tmp_path / ARCHIVES["cifar10"], FOLDERS["cifar100"], archives.cifar100_files())
    with pytest.raises(LabError, match="does not hold cifar-10-batches-py/data_batch_1"):
        data.load("cifar10", tmp_path)


def test_missing_batch_is_named(folder):
    (folder / "data_batch_4").unlink()
    with pytest.raises(LabError, match=r"does not hold cifar-10-batches-py/data_batch_4 but batches.meta"):
        data.load("cifar10", folder.parent)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content[:-8] + b"oops" + content[-4:],  # the checksum
        lambda content: gzip.compress(gzip.decompress(content)[:100_000]),
        lambda content: b"not an archive",
    ],
)
def test_damaged_archive_is_refused(tmp_path, change):
    path = archives.packed(tmp_path / ARCHIVES["cifar10"], FOLDERS["cifar10"], archives.cifar10_files())
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(LabError, match=r"cifar-10-python.tar.gz is damaged"):
        data.load("cifar10", tmp_path)


def test_archive_is_read_without_writing_anything(tmp_path):
    files = {**archives.cifar10_files(), "../../escaped": b"x"}
    archives.packed(tmp_path / "root" / ARCHIVES["cifar10"], FOLDERS["cifar10"], files)
    data.load("cifar10", tmp_path / "root")
    assert sorted(p.name for p in tmp_path.rglob("*")) == [ARCHIVES["cifar10"], "root"]
