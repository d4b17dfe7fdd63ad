"""A folder of images: its order, split, cache and checksum, and what is wrong with one."""

import os
import re

import numpy as np
import pytest
import torch
from PIL import Image

from lab import archives
from lab.runs import call
from polyak_lab import data
from polyak_lab.config.run import Data
from polyak_lab.data import folder
from polyak_lab.errors import LabError, RowError
from polyak_lab.runs import documents, stored


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYAK_DATA", str(tmp_path / "data"))


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(path)


def grey(value, size=(4, 3)):
    return np.full(size, value)


@pytest.fixture
def images(tmp_path):
    """Two classes with two images for training, and one for testing."""
    root = tmp_path / "images"
    for i, (part, name) in enumerate([("train", "cat"), ("train", "dog"), ("test", "cat"), ("test", "dog")]):
        save(root / part / name / "b.png", grey(10 * i + 1))
        save(root / part / name / f"{'ac'[i % 2]}.png", grey(10 * i))
    return root


def write_as_folder(root, part, split):
    for i, (image, label) in enumerate(zip(split.inputs, split.targets.tolist(), strict=True)):
        save(root / part / str(label) / f"{i:05}.png", image[0].numpy())


@pytest.mark.parametrize("official", [False, pytest.param(True, marks=pytest.mark.system)])
def test_fashion_mnist_as_a_folder_has_the_metrics_of_the_built_in_reader(tmp_path, official):
    if not official:
        archives.mnist(tmp_path / "data/fashion-mnist")
    fashion = data.load("fashion-mnist")
    assert len(fashion.train.targets) == 60_000 or not official
    for part in ("train", "test"):
        write_as_folder(tmp_path / "png", part, getattr(fashion, part))
    settings = ("--model", "mlp", "--optimizer", "alig", "--lr", 0.1, "--epochs", 2, "--holdout", 4)
    settings = (*settings, "--batch-size", 512 if official else 8, "--augment", "--threads", 1, "--device", "cpu")
    assert call("train", "--data", "fashion-mnist", *settings, "--out", tmp_path / "one") == 0
    for out in ("two", "three"):  # the second time from the cache
        assert call("train", "--data", "folder", "--root", tmp_path / "png", *settings, "--out", tmp_path / out) == 0
        assert (tmp_path / "one/metrics.jsonl").read_bytes() == (tmp_path / out / "metrics.jsonl").read_bytes()


def test_images_are_ordered_by_their_names(images):
    loaded = data.load("folder", images)
    assert loaded.train.inputs[:, 0, 0, 0].tolist() == [0, 1, 11, 10]
    assert loaded.train.targets.tolist() == [0, 0, 1, 1]
    assert (loaded.outputs, loaded.loss, loaded.shape) == (2, "cross_entropy", (1, 4, 3))


def test_every_fifth_image_of_a_class_is_for_testing(tmp_path):
    for name in ("cat", "dog"):
        for i in range(11):
            save(tmp_path / "images" / name / f"{i:02}.jpg", grey(20 * i, (8, 8)))
    loaded = data.load("folder", tmp_path / "images")
    assert len(loaded.train.targets) == 18
    assert loaded.test.inputs[:, 0, 0, 0].tolist() == [80, 80, 180, 180]
    assert loaded.test.targets.tolist() == [0, 1, 0, 1]


def test_one_picture_in_colour_makes_all_rgb(images):
    save(images / "train/cat/d.png", np.stack([grey(1), grey(2), grey(3)], axis=-1))
    Image.new("RGBA", (3, 4), (4, 5, 6, 7)).save(images / "train/cat/e.PNG")
    Image.new("P", (3, 4)).save(images / "train/cat/f.png")
    loaded = data.load("folder", images)
    corners = loaded.train.inputs[:, :, 0, 0].tolist()
    assert corners == [[0, 0, 0], [1, 1, 1], [11, 11, 11], [10, 10, 10], [1, 2, 3], [4, 5, 6], [0, 0, 0]]


def test_images_are_decoded_once(images, monkeypatch):
    first = data.load("folder", images)
    with monkeypatch.context() as patch:
        patch.setattr(folder, "_decode", lambda files: pytest.fail("decoded again"))
        again = data.load("folder", images)
    assert torch.equal(first.train.inputs, again.train.inputs)
    save(images / "train/cat/a.png", grey(99))
    assert 99 in data.load("folder", images).train.inputs


@pytest.mark.parametrize("damage", [b"", b"nonsense", None])
def test_a_damaged_cache_is_made_again(images, tmp_path, damage):
    first = data.load("folder", images)
    (cached,) = (tmp_path / "data/folders").iterdir()
    content = bytearray(cached.read_bytes())
    if damage is None:
        content[len(content) // 3] ^= 1
    cached.write_bytes(content if damage is None else damage)
    assert torch.equal(data.load("folder", images).train.inputs, first.train.inputs)


def test_a_place_that_takes_no_cache_is_decoded_every_time(images, tmp_path, monkeypatch):
    (tmp_path / "data").write_text("a file")
    assert len(data.load("folder", images).train.targets) == 4


def test_the_checksum_is_that_of_the_pixels(images, tmp_path):
    one = data.resolve(Data("folder", root=str(images)))
    os.utime(images / "train/cat/a.png", (0, 0))
    assert data.resolve(one) == one
    images.rename(tmp_path / "moved")
    assert data.resolve(Data("folder", root=str(tmp_path / "moved"))).sha256 == one.sha256
    save(tmp_path / "moved/train/cat/a.png", grey(77))
    with pytest.raises(LabError, match=r"moved is not the folder of data\.sha256"):
        data.resolve(Data("folder", root=str(tmp_path / "moved"), sha256=one.sha256))
    with pytest.raises(LabError, match="takes no context"):
        data.resolve(Data("folder", root=str(tmp_path / "moved"), context=3))


def empty(place):
    for file in place.iterdir():
        file.unlink()


def deep(path):
    Image.fromarray(np.full((4, 3), 30_000, dtype=np.uint16)).save(path)


WRONG = {
    "no image": (lambda root: (root / "train/cat/a.png").write_text("text"), r"a\.png cannot be read as an image"),
    "cut off": (lambda root: cut(root / "train/dog/b.png"), r"b\.png cannot be read as an image"),
    "empty file": (lambda root: (root / "test/dog/b.png").write_bytes(b""), r"b\.png cannot be read as an image"),
    "16 bits": (lambda root: deep(root / "train/cat/a.png"), r"a\.png cannot be read as an image \(its channels have"),
    "broken link": (
        lambda root: (root / "test/cat/z.png").symlink_to("nowhere"),
        r"z\.png cannot be read \(No such file",
    ),
    "empty class": (lambda root: empty(root / "train/dog"), r"train/dog has no images"),
    "empty test class": (lambda root: empty(root / "test/cat"), r"test/cat has no images"),
    "size": (lambda root: save(root / "test/cat/z.png", grey(1, (5, 5))), r"z\.png is 5×5 pixels large, but .* 3×4"),
    "unknown class": (lambda root: save(root / "test/cow/a.png", grey(1)), r"cow is a class without training images"),
    "no test": (lambda root: (root / "test").rename(root / "tset"), r"There is no .*test: data 'folder' needs"),
    "no classes": (lambda root: (root / "train").rename(root / "test/train"), r"has 0 images|has no images"),
    "nothing": (lambda root: root.rename(root.parent / "other"), r"There is no .*images: data 'folder' reads it"),
}


def cut(path):
    path.write_bytes(path.read_bytes()[:-30])


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named(images, case):
    change, message = WRONG[case]
    change(images)
    with pytest.raises(RowError, match=message) as caught:
        data.load("folder", images)
    assert len(re.sub(r"/\S+", "PATH", str(caught.value))) < 200


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file.png").write_bytes(b"")
    with pytest.raises(RowError, match="is no folder"):
        data.load("folder", tmp_path / "file.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RowError, match="has no folders"):
        data.load("folder", tmp_path / "empty")
    save(tmp_path / "few/cat/a.png", grey(1))
    with pytest.raises(RowError, match="has 1 images: the split needs 5"):
        data.load("folder", tmp_path / "few")


def test_a_row_with_a_damaged_image_is_named_and_the_others_are_trained(images, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (images / "train/cat/a.png").write_text("text")
    settings = 'training = { epochs = 1, device = "cpu" }\n[[row]]\nname = "good"\ndata = "digits"\n'
    bad = '[[row]]\nname = "bad"\ndata = { name = "folder", root = "images" }\n'
    defaults = '[defaults]\nmodel = "logistic"\noptimizer = { name = "sgd", lr = 0.1 }\n'
    (tmp_path / "recipe.toml").write_text(defaults + settings + bad, encoding="utf-8")
    assert call("run", "recipe.toml", "--out", "runs") == 1
    assert "row 'bad' (line 8): " in (errors := capsys.readouterr().err)
    assert "a.png cannot be read as an image" in errors
    assert [run.label.row for run in stored.find_runs([tmp_path / "runs"]) if run.finished] == ["good"]
    assert documents.read_config(tmp_path / "runs/good/seed-0/config.json")["run"]["data"]["name"] == "digits"
