"""Recipes are read strictly, and every row of ours builds and steps."""

from pathlib import Path

import pytest
import torch

from lab.runs import execute
from polyak_lab import data, recipes
from polyak_lab.data import Dataset, Split
from polyak_lab.errors import LabError

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))
ROWS = [(path.stem, row) for path in RECIPES for row in recipes.load(path).rows]
DOWNLOADS = {
    "mnist": ((1, 28, 28), 10),
    "fashion-mnist": ((1, 28, 28), 10),
    "cifar10": ((3, 32, 32), 10),
    "cifar100": ((3, 32, 32), 100),
}

GOOD = """
title = "A table"
seeds = [0, 1]

[defaults]
data = "digits"
model = "mlp"
training = { epochs = 2, batch_size = 64 }

[[row]]
name = "SGD, cosine"
optimizer = { name = "sgd", lr = 0.1 }
schedule = "cosine"
training = { epochs = 3 }
paper = 93.5

[[row]]
name = "ALI-G"
data = { name = "digits", augment = true }
optimizer = { name = "alig", lr = 1, l2_ball = 100 }
"""


def load(tmp_path, text):
    path = tmp_path / "table.toml"
    path.write_text(text)
    return recipes.load(path)


def test_rows_lie_over_the_defaults(tmp_path):
    recipe = load(tmp_path, GOOD)
    first, second = recipe.rows
    assert (recipe.title, recipe.seeds) == ("A table", (0, 1))
    assert (first.slug, first.paper, second.paper) == ("sgd-cosine", 93.5, None)
    assert (first.run.training.epochs, first.run.training.batch_size, second.run.training.epochs) == (3, 64, 2)
    assert (first.run.schedule.name, second.run.schedule.name) == ("cosine", "constant")
    assert (first.run.data.augment, second.run.data.augment) == (False, True)
    assert (second.run.optimizer.l2_ball, dict(second.run.optimizer.options)) == (100.0, {"lr": 1})


WRONG = {
    "top level": (("seeds =", "sedes ="), "table.toml: 'sedes' is not known; did you mean 'seeds'"),
    "section": (("model =", "modle ="), "'modle' is not known; did you mean 'model'"),
    "key": (("batch_size", "batchsize"), "'batchsize' is not known; did you mean 'batch_size'"),
    "data key": (("augment", "augmentt"), "'augmentt' is not known; did you mean 'augment'"),
    "type": (("epochs = 3", 'epochs = "3"'), "training.epochs is '3', but must be of type int"),
    "boolean number": (("epochs = 3", "epochs = true"), "training.epochs is True"),
    "range": (("epochs = 3", "epochs = 0"), "training.epochs is 0, but must be 1 or more"),
    "missing section": (('model = "mlp"', ""), "the key 'model' is missing"),
    "missing optimizer": (('optimizer = { name = "sgd", lr = 0.1 }', ""), "the key 'optimizer' is missing"),
    "nameless": (('name = "ALI-G"', ""), "row 2 needs a name"),
    "same folder": (('name = "ALI-G"', 'name = "SGD - cosine"'), "would share one folder"),
    "paper": (("93.5", '"93.5"'), "paper is '93.5', but must be a number"),
    "no seeds": (("[0, 1]", "[]"), "seeds is empty"),
    "syntax": (("title =", "title"), "table.toml is not valid TOML"),
    "section type": (('data = "digits"', "data = 3"), "data is 3, but must be a name or a table"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_refused(case, tmp_path):
    (old, new), message = WRONG[case]
    assert old in GOOD
    with pytest.raises(LabError, match=r"^[^\n]*$") as caught:
        load(tmp_path, GOOD.replace(old, new))
    assert message in str(caught.value)


def test_a_recipe_that_is_not_there(tmp_path):
    with pytest.raises(LabError, match="cannot be read: No such file"):
        recipes.load(tmp_path / "none.toml")


def test_rows_are_chosen_by_name_or_folder(tmp_path):
    rows = load(tmp_path, GOOD).rows
    assert recipes.select(rows, []) == rows
    assert recipes.select(rows, ["ALI-G"]) == recipes.select(rows, ["ali-g"]) == rows[1:]
    with pytest.raises(LabError, match="--row: 'ALIG' is not known; did you mean 'ALI-G'"):
        recipes.select(rows, ["ALIG"])


@pytest.mark.parametrize(("recipe", "row"), ROWS, ids=[f"{recipe}-{row.slug}" for recipe, row in ROWS])
def test_every_row_takes_two_steps(recipe, row, tmp_path, monkeypatch):
    if row.run.data.name in DOWNLOADS:
        monkeypatch.setattr(data, "load", stand_in)
    run = recipes.smoke(recipes.on_device(row.run, "cpu"))
    (record,) = execute(tmp_path, run).records
    assert record["step_size"] > 0
    assert record["train_loss"] > 0


def stand_in(name):
    """Noise of the shape of a data set that has to be downloaded."""
    shape, classes = DOWNLOADS[name]
    split = Split(torch.randint(256, (256, *shape), dtype=torch.uint8), torch.randint(classes, (256,)))
    return Dataset(name, split, split, classes, "cross_entropy", torch.full(shape[:1], 0.5), torch.ones(shape[0]))
