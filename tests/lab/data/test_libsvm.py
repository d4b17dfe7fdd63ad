"""Mushrooms in LIBSVM's text format."""

import pytest
import torch

from lab import archives
from polyak_lab import data
from polyak_lab.errors import LabError


def write(root, **files):
    (root / "mushrooms").mkdir()
    for name, text in files.items():
        (root / "mushrooms" / name.replace("_", ".")).write_text(text)
    return root


def test_reads_vectors_and_maps_labels_to_signs(tmp_path):
    write(tmp_path, train_svm=archives.MUSHROOM_ROWS, test_svm="2 2:0.5 7:-3 # a comment\n\n")
    mushrooms = data.load("mushrooms", tmp_path)
    assert (mushrooms.shape, mushrooms.outputs, mushrooms.loss) == ((7,), 1, "logistic")
    assert mushrooms.mean is None
    assert mushrooms.train.targets.tolist() == [-1, 1, 1, -1, -1]
    assert mushrooms.train.inputs[0].tolist() == [1, 0, 1, 0, 1, 0, 0]
    assert mushrooms.test.inputs.tolist() == [[0, 0.5, 0, 0, 0, 0, -3]]
    assert mushrooms.test.targets.tolist() == [1]
    assert {t.dtype for s in (mushrooms.train, mushrooms.test) for t in (s.inputs, s.targets)} == {torch.float32}


@pytest.mark.parametrize(("low", "high"), [("0", "1"), ("1", "2"), ("-1", "+1"), ("-1.0", "1e0")])
def test_smaller_label_is_minus_one(tmp_path, low, high):
    text = f"{high} 1:1\n{low} 1:2\n"
    write(tmp_path, train_svm=text, test_svm=text)
    assert data.load("mushrooms", tmp_path).train.targets.tolist() == [1, -1]


@pytest.mark.parametrize("as_folder", [True, False])
def test_one_file_is_split_always_in_the_same_way(tmp_path, as_folder):
    text = "".join(f"{i % 2} 1:{i}\n" for i in range(50))
    if as_folder:
        write(tmp_path, mushrooms=text)
    else:
        (tmp_path / "mushrooms").write_text(text)
    first, second = data.load("mushrooms", tmp_path), data.load("mushrooms", tmp_path)
    assert torch.equal(first.train.inputs, second.train.inputs)
    assert (len(first.train.inputs), len(first.test.inputs)) == (40, 10)
    rows = torch.cat([first.train.inputs, first.test.inputs]).flatten()
    assert sorted(rows.tolist()) == list(range(50))
    assert rows.tolist() != list(range(50))
    assert torch.equal(first.train.targets, first.train.inputs[:, 0] % 2 * 2 - 1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "it has no rows"),
        ("1\n2\n", "no line has a feature"),
        ("1 1:1\n1 2:1\n", "1 different labels instead of 2"),
        ("1 1:1\n2 2:1\n3 2:1\n", "3 different labels instead of 2"),
        ("1 1:1\n2 a:1\n", "line 2 is not 'label index:value ...'"),
        ("1 1:1\ntwo 1:1\n", "line 2 is not"),
        ("1 1:1\n2 1\n", "line 2 is not"),
        ("1 1:1\n2 1:1:1\n", "line 2 is not"),
        ("1 1:1\n2 0:1\n", "line 2 has an index below 1"),
        ("1 1:1\n2 99999999999:1\n", "line 2 has an index below 1, above"),
        ("1 1:1\n2 3:1 3:2\n", "line 2 has an index .*twice"),
        ("1 1:1\n2 1:nan\n", "line 2 has a value that is not finite"),
        ("inf 1:1\n2 1:1\n", "line 1 has a value that is not finite"),
        ("<!DOCTYPE html>\n", "line 1 is not"),
        ("é 1:1\n", "line 1 is not"),
        ("1 1:1\n2 1:1e39\n", "line 2 has a value that is not finite in float32"),
        ("1 1:1\n2 1:-1e300\n", "line 2 has a value that is not finite in float32"),
        ("1 1:1\n" * 1500 + "2 1000000:1\n" * 1500, "3,000 lines and an index of 1,000,000 make more than"),
    ],
)
def test_damaged_text_is_refused_with_its_line(tmp_path, text, said):
    path = tmp_path / "mushrooms"
    path.write_text(text)
    with pytest.raises(LabError, match=said) as error:
        data.load("mushrooms", tmp_path)
    assert str(path) in str(error.value)


def test_damage_in_one_of_two_files_names_that_file(tmp_path):
    write(tmp_path, train_svm=archives.MUSHROOM_ROWS, test_svm="what?\n")
    with pytest.raises(LabError, match=r"mushrooms/test.svm is damaged .*line 1"):
        data.load("mushrooms", tmp_path)


def test_half_a_folder_is_refused(tmp_path):
    write(tmp_path, train_svm=archives.MUSHROOM_ROWS)
    with pytest.raises(LabError, match=r"does not hold test.svm or mushrooms but train.svm"):
        data.load("mushrooms", tmp_path)


@pytest.mark.parametrize(
    ("rows", "said"), [(8124, "as many as the official file has"), (8000, "official file has 8,124")]
)
def test_check_compares_the_number_of_rows(rows, said, tmp_path):
    write(tmp_path, mushrooms="1 1:1\n2 2:1\n" * (rows // 2))
    assert said in data.check("mushrooms", tmp_path)
