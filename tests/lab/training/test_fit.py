"""Every row of a recipe is checked before the first one trains."""

import re

import pytest

from lab.runs import call, run
from polyak_lab import models
from polyak_lab.config import run as config
from polyak_lab.errors import LabError
from polyak_lab.models.catalogue import ARCHITECTURES
from polyak_lab.recipes.resolve import resolve
from polyak_lab.training.fit import check_fit

RECIPE = """
[defaults]
training = {{ epochs = 1, batch_size = 256, device = "cpu", threads = 1 }}
optimizer = "alig"
data = "digits"
model = "logistic"
[[row]]
name = "good"
[[row]]
name = "the bad one"
{row}
"""
BAD = {
    "vectors for a network of images": ('data = "separable-logistic"\nmodel = "resnet8"', "takes images"),
    "images for a network of vectors": ('model = "deep-linear"', "takes vectors"),
    "a last batch of one image": (
        'model = "resnet34"\ntraining = { batch_size = 1436 }',
        "Model 'resnet34' cannot be trained on 'digits', in batches of 1 or more inputs of shape (1, 8, 8)",
    ),
    "no data": ('data = "cifar100"\nmodel = "resnet8"', "polyak data fetch cifar100"),
    "too few samples": ('data = { name = "digits", holdout = 5000 }', "holdout is 5000, but must be 1436 or less"),
    "crops of vectors": ('data = { name = "separable-logistic", augment = true }', "crops and flips"),
    "a kernel of images": (
        'data = { name = "digits", kernel_width = 1.0 }',
        "a kernel (data.kernel_width) needs vectors",
    ),
    "an option": ('optimizer = { name = "sgd", lr = -1.0 }', "optimizer sgd"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_row_that_cannot_be_trained_is_named_before_anything_trains(case, tmp_path, monkeypatch, capsys):
    row, said = BAD[case]
    monkeypatch.setenv("POLYAK_DATA", str(tmp_path / "data"))
    (tmp_path / "recipe.toml").write_text(RECIPE.format(row=row))
    status = call("run", tmp_path / "recipe.toml", "--out", tmp_path / "runs")
    errors = capsys.readouterr().err
    assert (status, (tmp_path / "runs").exists()) == (1, False)
    assert re.fullmatch(r"polyak: .*recipe\.toml, row 'the bad one': [^\n]+\n", errors)
    assert said in errors
    assert len(errors.replace(str(tmp_path), "")) < 400


IMAGES = [name for name, found in ARCHITECTURES.items() if found.axes != 1 and not found.text]


@pytest.mark.parametrize("name", [name for name in IMAGES if not name.startswith(("wrn", "densenet"))])
def test_what_fits_is_let_through(name):
    check_fit(resolve(run(model=name)))


@pytest.mark.parametrize("name", ["deep-linear", "deep-linear-4", "linear", "mlp"])
def test_vectors_that_fit(name):
    check_fit(resolve(run(model=name, data="matrix-factorisation")))


def test_a_kernel_of_vectors_fits_without_being_computed(monkeypatch):
    wanted = config.Run(
        config.Data("separable-logistic", kernel_width=0.5),
        config.Model("logistic"),
        config.Optimizer("sps"),
        config.Training(epochs=1, device="cpu"),
    )
    check_fit(resolve(wanted))
    assert set(models.NAMES) >= set(IMAGES)


@pytest.mark.parametrize("flags", [("--milestones", 3), ("--factor", 0.1), ("--schedule", "cosine", "--factor", 0.5)])
def test_flags_of_the_step_schedule_without_it(flags, tmp_path, capsys):
    arguments = ("--data", "digits", "--model", "mlp", "--optimizer", "sgd", "--lr", 0.1, "--device", "cpu")
    assert call("train", *arguments, *flags, "--out", tmp_path / "run") == 1
    assert re.fullmatch(r"polyak: .*(takes no milestones and no factor)[^\n]*\n", capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["constant", "cosine"])
@pytest.mark.parametrize("option", [{"milestones": (3,)}, {"factor": 0.5}, {"factor": 0.1}])
def test_options_of_the_step_schedule_without_it(name, option):
    base = run(config.Optimizer("sgd", options={"lr": 0.1}))
    wanted = config.Run(base.data, base.model, base.optimizer, base.training, config.Schedule(name, **option))
    with pytest.raises(LabError, match="takes no milestones and no factor"):
        resolve(wanted)


STALE = """
[defaults]
training = { epochs = 1, batch_size = 256, device = "cpu", threads = 1 }
optimizer = { name = "alig", lr = 1.0 }
data = "digits"
model = "logistic"
[[row]]
name = "old name"
"""


def test_rows_that_are_not_of_this_recipe_are_named_below_its_table(tmp_path, capsys):
    path, out = tmp_path / "recipe.toml", tmp_path / "runs"
    path.write_text(STALE)
    assert call("run", path, "--out", out) == 0
    assert "old name" in capsys.readouterr().out
    path.write_text(STALE.replace("old name", "new name"))
    assert call("run", path, "--out", out) == 0
    shown, _, below = capsys.readouterr().out.partition("also holds")
    assert ("new name" in shown, "old name" in shown) == (True, False)
    assert "1 run that is not of this recipe ('old name')" in below
    other = tmp_path / "elsewhere" / "recipe.toml"  # another recipe of the same name
    other.parent.mkdir()
    other.write_text(STALE.replace("old name", "third"))
    assert call("run", other, "--out", out) == 0
    assert "2 runs that are not of this recipe ('new name', 'old name')" in capsys.readouterr().out


def test_other_settings_of_a_row_with_another_seed_are_not_of_this_recipe(tmp_path, capsys):
    path, out = tmp_path / "recipe.toml", tmp_path / "runs"
    path.write_text(STALE)
    assert call("run", path, "--out", out) == 0
    path.write_text(STALE.replace("lr = 1.0", "lr = 2.0").replace("[defaults]", "seeds = [1]\n[defaults]"))
    capsys.readouterr()
    assert call("run", path, "--out", out) == 0
    shown, _, below = capsys.readouterr().out.partition("also holds")
    assert "[" not in shown.split("old name", 2)[1].splitlines()[0]
    assert "1 run that is not of this recipe ('old name')" in below


TWO_ROWS = f"{STALE}[[row]]\nname = 'other'\noptimizer = {{ name = 'sgd', lr = 0.1 }}\n"


@pytest.mark.parametrize(
    ("old", "new", "shown"),
    [
        ("'sgd', lr = 0.1", "'sgd', lr = 0.2", False),
        ("'sgd', lr = 0.1", "'sgd', lr = 0.1, momentum = 0.9", False),
        ("epochs = 1", "epochs = 1, precision = 'bfloat16'", False),
        ("'other'\n", "'another'\n", False),
        ("title = ''", "seeds = [4]\ntitle = 'x'", True),
        ("name = 'other'", "name = 'other'\npaper = 1.0", True),
    ],
)
def test_a_row_that_is_not_trained_now_is_shown_only_as_the_recipe_has_it(old, new, shown, tmp_path, capsys):
    path, out = tmp_path / "recipe.toml", tmp_path / "runs"
    content = f"title = ''\n{TWO_ROWS}"
    path.write_text(content)
    assert call("run", path, "--out", out) == 0
    path.write_text(content.replace(old, new))
    for folder in (out / "old-name", out / "other") if "epochs" in old else ():
        folder.rename(tmp_path / folder.name)
        (tmp_path / folder.name).rename(out / f"{folder.name}-before")
    capsys.readouterr()
    assert call("run", path, "--out", out, "--row", "old name") == 0
    table, _, below = capsys.readouterr().out.partition("also holds")
    assert ("other" in table) == shown
    assert ("'other'" in below) == (not shown)


def test_a_row_of_another_device_is_shown(tmp_path, capsys, monkeypatch):
    """As when it was trained on a machine with a GPU, and device is auto."""
    path, out = tmp_path / "recipe.toml", tmp_path / "runs"
    path.write_text(TWO_ROWS.replace('"cpu"', '"auto"'))
    with monkeypatch.context() as patch:
        patch.setattr("polyak_lab.recipes.resolve._resolve_device", lambda name: "cpu:0")
        assert call("run", path, "--out", out, "--row", "other") == 0
    capsys.readouterr()
    assert call("run", path, "--out", out, "--row", "old name") == 0
    said = capsys.readouterr().out
    assert ("other" in said, "also holds" in said) == (True, False)


@pytest.mark.parametrize(("old", "new"), [('"old name"', '"Old  name"'), ("[[row]]", "[[row]]\npaper = 95.5")])
def test_finished_runs_take_the_name_and_number_that_the_recipe_has_now(old, new, tmp_path, capsys):
    path, out = tmp_path / "recipe.toml", tmp_path / "runs"
    path.write_text(STALE)
    assert call("run", path, "--out", out) == 0
    path.write_text(STALE.replace(old, new))
    capsys.readouterr()
    assert call("run", path, "--out", out, "--jobs", 2) == 0
    said = capsys.readouterr().out
    assert "also holds" not in said
    assert new.split()[-1].strip('"') in said
    assert ("Old  name" in said) == ("Old" in new)
