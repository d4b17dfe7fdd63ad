"""The catalogue, the bundled digits and the synthetic problems."""

import gzip
import re
import resource
import tarfile
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

import polyak_lab
from polyak_lab import data
from polyak_lab.data import source
from polyak_lab.data.synthetic import matrix_factorisation, separable_logistic
from polyak_lab.errors import LabError

BUILT_IN = ("digits", "separable-logistic", "matrix-factorisation")


@pytest.fixture(autouse=True)
def empty_root(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYAK_DATA", str(tmp_path / "nothing"))


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_data_loads_without_files_and_is_the_same_each_time(name):
    first, second = data.load(name), data.load(name)
    assert first.name == name
    for split in ("train", "test"):
        a, b = getattr(first, split), getattr(second, split)
        assert len(a.inputs) == len(a.targets) > 0
        assert torch.equal(a.inputs, b.inputs)
        assert torch.equal(a.targets, b.targets)


def test_digits_are_the_real_ones():
    digits = data.load("digits")
    assert digits.shape == (1, 8, 8)
    assert digits.is_image
    assert (digits.outputs, digits.loss) == (10, "cross_entropy")
    assert (len(digits.train.inputs), len(digits.test.inputs)) == (1437, 360)
    assert digits.train.inputs.dtype == torch.uint8
    assert digits.train.targets[:10].tolist() == list(range(10))
    counts = torch.bincount(torch.cat([digits.train.targets, digits.test.targets]))
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_digits_pixels_are_sixteenths_of_255():
    images = data.load("digits").train.inputs
    assert images[0, 0, 0].tolist() == [round(v * 255 / 16) for v in (0, 0, 5, 13, 9, 1, 0, 0)]
    assert set(images.unique().tolist()) == {round(v * 255 / 16) for v in range(17)}


def test_statistics_are_those_of_the_training_pixels():
    digits = data.load("digits")
    pixels = digits.train.inputs.double() / 255
    assert digits.mean.item() == pytest.approx(pixels.mean().item(), rel=1e-6)
    assert digits.std.item() == pytest.approx(pixels.std(correction=0).item(), rel=1e-6)


def test_bundled_file_is_small_and_official():
    assert "every checksum is the official one" in data.check("digits")
    folder = Path(polyak_lab.__file__).parent / "data"
    assert (folder / "digits.csv.gz").stat().st_size < 200_000
    assert "CC BY 4.0" in (folder / "README.md").read_text()


def test_separable_logistic_has_its_margin():
    problem = separable_logistic(n=500, d=10, margin=0.2, seed=3)
    inputs = torch.cat([problem.train.inputs, problem.test.inputs]).double()
    targets = torch.cat([problem.train.targets, problem.test.targets]).double()
    assert (len(problem.train.inputs), problem.loss, problem.outputs) == (400, "logistic", 1)
    assert torch.allclose(inputs.norm(dim=1), torch.ones(500, dtype=torch.float64))
    assert set(targets.tolist()) == {-1.0, 1.0}
    normal = np.random.RandomState(3).standard_normal(10)
    distance = targets * (inputs @ torch.from_numpy(normal / np.linalg.norm(normal)))
    assert 0.2 - 1e-6 < distance.min() < 0.25


def test_seed_changes_the_problem():
    assert not torch.equal(separable_logistic(seed=0).train.inputs, separable_logistic(seed=1).train.inputs)


def test_matrix_factorisation_is_linear_with_rows_that_shrink():
    problem = matrix_factorisation()
    assert (problem.shape, problem.outputs, problem.loss) == ((6,), 10, "squared")
    x, y = problem.train.inputs.double(), problem.train.targets.double()
    A = torch.linalg.lstsq(x, y).solution.T
    assert (problem.test.inputs.double() @ A.T - problem.test.targets.double()).abs().max() < 1e-5
    scales = A.abs().amax(1)
    assert scales[0] > 0.5
    assert scales[-1] < 1e-9
    assert torch.linalg.matrix_rank(A) == 6


def test_moving_keeps_everything_and_vectors_have_no_statistics():
    moved = data.load("digits").to("meta")
    assert {t.device.type for t in (moved.train.inputs, moved.test.targets, moved.mean, moved.std)} == {"meta"}
    vectors = data.load("separable-logistic").to("cpu")
    assert vectors.mean is None
    assert vectors.std is None
    assert not vectors.is_image


def test_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(LabError, match=r"'cifar-10'.*did you mean 'cifar10'"):
        data.load("cifar-10")


@pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar100", "mushrooms"])
@pytest.mark.parametrize("action", [data.load, data.check])
def test_missing_data_says_how_to_get_it_and_where_it_belongs(name, action, tmp_path):
    with pytest.raises(LabError) as error:
        action(name, tmp_path)
    sentence = str(error.value)
    assert f"polyak data fetch {name}" in sentence
    assert str(tmp_path / name) in sentence
    assert "\n" not in sentence


def test_default_root_is_the_variable_or_the_cache(monkeypatch, tmp_path):
    assert data.default_root() == tmp_path / "nothing"
    monkeypatch.delenv("POLYAK_DATA")
    assert data.default_root() == Path.home() / ".cache" / "polyak" / "data"


def test_description_has_a_row_for_every_name():
    rows = data.describe()
    assert tuple(row.name for row in rows) == data.NAMES
    where = {row.name: row.where for row in rows}
    assert {where[name] for name in BUILT_IN} == {"built in"}
    assert where["cifar10"] == "not here"


def test_check_of_a_drawn_problem_names_no_file():
    assert re.fullmatch(r"separable-logistic, drawn on the spot: 1,000 \+ 250 .*", data.check("separable-logistic"))


def test_wheel_takes_the_whole_package_with_its_data():
    package = Path(polyak_lab.__file__).parent
    assert (package / "data" / "digits.csv.gz").is_file()
    assert (package / "report" / "page.html.j2").is_file()
    project = package.parents[1] / "pyproject.toml"
    wheel = tomllib.loads(project.read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert "src/polyak_lab" in wheel["packages"]
    assert "exclude" not in wheel


def test_a_file_that_unpacks_to_more_than_the_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "LARGEST", 1 << 20)
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(bytes(64 << 20)))
    with pytest.raises(LabError, match=r"bomb\.gz is damaged .*unpacks to more than 1,048,576 bytes"):
        source.read_file(path)
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(LabError, match=r"bomb\.gz is damaged .*has more than 1,048,576 bytes"):
        source.read_file(path)


def test_a_sparse_archive_is_refused(tmp_path):
    """GNU's sparse format: a member of some hundred bytes that claims a terabyte."""
    member = tarfile.TarInfo("cifar-100-python/train")
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    header[156:157] = b"S"
    header[386:410] = tarfile.itn(0, 12) + tarfile.itn(0, 12)
    header[483:495] = tarfile.itn(1 << 40, 12, tarfile.GNU_FORMAT)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "cifar-100-python.tar.gz").write_bytes(gzip.compress(bytes(header) + bytes(1024)))
    with pytest.raises(LabError, match="unpacks to more than 1,073,741,824 bytes"):
        data.load("cifar100", tmp_path)


def test_a_small_file_takes_little_memory(tmp_path):
    path = tmp_path / "small.gz"
    path.write_bytes(gzip.compress(b"text"))
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), limits[1]))
    try:
        assert source.read_file(path) == b"text"
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
