"""Values that a recipe may hold and no run can use: refused before anything trains, with file, row and key."""

import re

import pytest

from lab.runs import call
from polyak_lab.config.strict import check_known
from polyak_lab.errors import LabError
from polyak_lab.recipes import recipe as recipes

RECIPE = """
title = "A table"
[defaults]
data = {{ name = "digits"{data} }}
model = "logistic"
training = {{ epochs = 1, batch_size = 512, max_batches = 1, device = "cpu", threads = 1{training} }}
schedule = {{ name = "step", milestones = [1]{schedule} }}
[[row]]
name = "The row"
optimizer = {{ name = "{optimizer}"{options} }}
{row}
"""
HUGE = "9" * 25
VALUES = {
    "factor": [("schedule", f"factor = {value}") for value in ("nan", "-0.1", "0.0", "inf", "1e300", HUGE * 20)],
    "warmup_steps": [("schedule", f"warmup_steps = {value}") for value in (HUGE, "-1", "1.5")],
    "kernel_width": [("data", f"kernel_width = {value}") for value in ("1e300", "1e-300", "nan", "-1.0", "inf")],
    "holdout": [("data", f"holdout = {value}") for value in (HUGE, "-3", "true")],
    "train_size": [("data", f"train_size = {HUGE}")],
    "seed": [("training", f"shuffle_seed = {HUGE}"), ("training", f"shuffle_seed = -{HUGE}")],
    "clip_norm": [("training", f"clip_norm = {value}") for value in ("nan", "0.0", "1e300")],
    "precision": [("training", "precision = 16")],
    "betas": [("adamw", f"betas = {value}") for value in ("[0.9]", "[0.9, 0.99, 0.999]", "0.9", '"0.9"', '["a", "b"]')],
    "lr": [
        ("adamw", f"lr = {value}") for value in ("1e308", "nan", "-1.0", '"fast"', "[0.1]", HUGE * 3, "true", "inf")
    ],
    "momentum": [("sgd", f"momentum = {value}") for value in ("nan", "inf")],
    "weight_decay": [
        ("sgd", f"weight_decay = {value}") for value in ("inf", '"5e-4"', "1e300", "2020-01-01", "{ a = 1 }")
    ],
    "dampening": [("sgd", f"dampening = {value}") for value in ('"x"', "[1]")],
    "nesterov": [("sgd", f"nesterov = {value}") for value in ('"yes"', "1", "true")],  # without momentum
    "foreach": [("adam", 'foreach = "no"'), ("adam", "foreach = true, fused = true")],
    "differentiable": [("sgd", "differentiable = true")],
    "eps": [("alig", f"eps = {value}") for value in ("1e300", "nan", '"x"', "[1.0]")],
    "l2_ball": [("alig", f"l2_ball = {value}") for value in ("1e300", "nan", "-1", '"x"', HUGE * 3)],
    "l2_ball_relative": [("alig", f"l2_ball_relative = {value}") for value in ("1e300", "nan", "0", '"x"', HUGE * 3)],
    "paper": [("row", f"paper = {value}") for value in ("nan", "inf", "1e300", "true", HUGE * 3)],
}
COMBINATIONS = ("nesterov = true", "foreach = true, fused = true", "differentiable = true")
CASES = [(key, place, text) for key, cases in VALUES.items() for place, text in cases]


def write(folder, place, text):
    parts = dict.fromkeys(("data", "training", "schedule", "options", "row"), "") | {"optimizer": "sgd"}
    if place in ("sgd", "adam", "adamw", "alig"):
        parts |= {"optimizer": place, "options": f", {text}"}
    else:
        parts[place] = text if place == "row" else f", {text}"
    path = folder / "table.toml"
    path.write_text(RECIPE.format(**parts))
    return path


def refusal(path, capsys, *flags):
    assert call("run", path, "--out", path.parent / "runs", *flags) == 1
    said = capsys.readouterr().err
    assert re.fullmatch(r"polyak: [^\n]+\.\n", said)
    assert len(said.replace(str(path), "")) < 300
    assert not (path.parent / "runs").exists()
    return said


@pytest.mark.parametrize(("key", "place", "text"), CASES)
def test_a_value_that_no_run_can_use(key, place, text, tmp_path, capsys):
    path = write(tmp_path, place, text)
    said = refusal(path, capsys)
    assert str(path) in said
    assert "The row" in said
    assert key in said.replace("learning rate", "lr") or text in COMBINATIONS


@pytest.mark.parametrize(
    "device", ["tpu", "", "cuda:99", "meta", "cuda:x", "vulkan", "mps", "xla", "hpu", "lazy", "cpu:-2", "99"]
)
def test_a_device_that_is_not_there(device, tmp_path, capsys):
    path = write(tmp_path, "row", "")
    path.write_text(path.read_text().replace('device = "cpu"', f'device = "{device}"'))
    said = refusal(path, capsys)
    assert all(part in said for part in (str(path), "The row", "training.device"))


@pytest.mark.parametrize("count", [HUGE, "0", "-1", "1.5", '"3"', "true"])
@pytest.mark.parametrize("key", ["epochs", "batch_size", "max_batches", "threads"])
def test_counts(key, count, tmp_path, capsys):
    path = write(tmp_path, "row", "")
    path.write_text(re.sub(rf"{key} = \d+", f"{key} = {count}", path.read_text()))
    said = refusal(path, capsys)
    assert all(part in said for part in (str(path), "The row", key))


def test_too_many_threads(tmp_path, capsys):
    path = write(tmp_path, "row", "")
    path.write_text(path.read_text().replace("threads = 1", "threads = 1000000"))
    assert "training.threads is 1000000, but must be 1024 or less" in refusal(path, capsys)


@pytest.mark.parametrize("seeds", [f"[{HUGE}]", "[0.5]", "[true]", '"0"', "[]"])
def test_seeds(seeds, tmp_path, capsys):
    path = write(tmp_path, "row", "")
    path.write_text(path.read_text().replace("title =", f"seeds = {seeds}\ntitle ="))
    said = refusal(path, capsys)
    assert str(path) in said
    assert "seed" in said


@pytest.mark.parametrize("seed", [-(2**63), 2**63 - 1])
def test_a_run_with_the_smallest_or_the_largest_seed_can_be_read(seed, tmp_path, capsys):
    path = write(tmp_path, "row", "")
    assert call("run", path, "--out", tmp_path / "runs", "--seeds", seed) == 0
    assert call("table", tmp_path / "runs") == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("values", ["[nan]", f"[{HUGE * 20}]", "[true]", "[]", '["a"]', "0.1", "[1e300]"])
def test_a_grid(values, tmp_path, capsys):
    path = write(tmp_path, "row", f"[grid]\nlr = {values}")
    assert str(path) in refusal(path, capsys)


FILES = {
    "UTF-16": RECIPE.encode("utf-16"),
    "no UTF-8": b"title = '\xff'",
    "NUL": b"\x00",
    "deep": b"a = " + b"[" * 50_000,
    "a long number": b"seeds = [" + b"9" * 5000 + b"]",
    "empty": b"",
    "a row that is none": b"row = 3",
    "rows that are none": b"row = [1, 2]",
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_is_no_recipe(case, tmp_path, capsys):
    path = tmp_path / "table.toml"
    path.write_bytes(FILES[case])
    assert str(path) in refusal(path, capsys)


def test_a_folder_is_no_recipe(tmp_path, capsys):
    (tmp_path / "table.toml").mkdir()
    assert str(tmp_path / "table.toml") in refusal(tmp_path / "table.toml", capsys)


def test_a_byte_order_mark_is_taken(tmp_path):
    path = write(tmp_path, "row", "")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert recipes.load(path).title == "A table"


@pytest.mark.parametrize("pair", ["", "lr", "lr = [", "[" * 50_000, "x = " + "9" * 5000, "# nothing"])
def test_an_option_that_is_no_pair(pair, capsys):
    command = ("train", "--data", "digits", "--model", "mlp", "--optimizer", "sgd", "--device", "cpu")
    assert call(*command, "--set", pair) == 1
    said = capsys.readouterr().err
    assert re.fullmatch(r"polyak: --set [^\n]+\.\n", said)
    assert len(said) < 300


NAMES = {
    "ALI-G, momentum 0.9": "ali-g-momentum-0.9",
    "模型": "模型",
    "Модель 2": "модель-2",
    "γ = 0.1": "γ-0.1",
    "ＡＬＩ－Ｇ": "ali-g",
    "a_b": "a-b",
    "Controls": "controls",
    "config.json.old": "config.json.old",
    "../../etc": "etc",
    "a/b\\c\x00d\ne": "a-b-c-d-e",
    "..": "row-",
    "🚀": "row-",
    "±": "row-",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_in_any_script_gets_a_folder(name):
    found = recipes.slug(name)
    assert found.startswith(NAMES[name]) if NAMES[name] == "row-" else found == NAMES[name]
    assert found not in ("", ".", "..")


@pytest.mark.parametrize("name", ["config.json", "Runs.jsonl", "report.html", "NUL", "aux", "com1.txt"])
def test_a_row_with_the_name_of_a_file_hides_none(name, tmp_path, capsys):
    path = write(tmp_path, "row", "")
    path.write_text(path.read_text().replace("The row", name))
    assert call("run", path, "--out", tmp_path / "runs", "--report") == 0
    assert call("table", tmp_path / "runs") == 0
    assert call("run", path, "--out", tmp_path / "runs", "--row", name) == 0
    said, errors = capsys.readouterr()
    assert "1 of 1 run was finished before." in said
    assert errors == ""
    (folder,) = (entry.name for entry in (tmp_path / "runs").iterdir() if entry.is_dir())
    assert re.fullmatch(rf"{name.lower()}-[0-9a-f]{{8}}", folder)


def test_long_names_get_short_folders_of_their_own():
    one, other = recipes.slug("模" * 300), recipes.slug("模" * 301)
    assert one != other
    assert max(len(one.encode()), len(other.encode())) <= 120


@pytest.mark.parametrize("name", ["ALIG", "Momo_Adam", "SGD"])
def test_the_nearest_name_is_that_in_any_case(name):
    nearest = name.lower().replace("_", "-")
    with pytest.raises(LabError, match=f"'{name}' is not known; did you mean '{nearest}'"):
        check_known(name, ("adam", "alig", "momo", "momo-adam", "sgd"), "optimizer")
