"""The recipes in examples/ run as they are, on fewer epochs."""

import sys
from pathlib import Path

import pytest

from lab.runs import call
from polyak_lab.recipes import recipe as recipes
from polyak_lab.recipes.resolve import resolve
from polyak_lab.runs import stored

EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.fixture(params=["own_recipe.toml", "experiment/recipe.toml"])
def recipe(request, monkeypatch):
    """Start in the folder of the recipe, and forget its modules afterwards."""
    path = EXAMPLES / request.param
    monkeypatch.chdir(path.parent)
    monkeypatch.setattr(sys, "path", [*sys.path])
    known = {*sys.modules}
    yield path.name
    for name in {*sys.modules} - known:
        if name.partition(".")[0] in ("own_recipe", "spirals"):
            del sys.modules[name]


@pytest.mark.filterwarnings("ignore:The loss:UserWarning")
def test_the_recipe_of_an_example_learns(recipe, tmp_path):
    rows = recipes.load(Path(recipe)).rows
    assert call("run", recipe, "--seeds", 0, "--out", tmp_path, *([] if "own" in recipe else ["--smoke"])) == 0
    runs = stored.find_runs([tmp_path])
    assert {run.label.row for run in runs} == {row.name for row in rows}
    assert min(run.records[-1]["test_accuracy"] for run in runs) > 0.4
    assert all(resolve(row.run).model.name in ("own_recipe:build", "spirals.model:build") for row in rows)
