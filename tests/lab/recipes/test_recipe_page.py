"""docs/recipes.md documents every key of a recipe, and no other; its example is one."""

import re
from dataclasses import MISSING, fields
from pathlib import Path

import pytest

from polyak_lab import models
from polyak_lab.config import run as config
from polyak_lab.objectives import OBJECTIVES
from polyak_lab.optimizers import METHODS, OPTIMIZERS
from polyak_lab.recipes import recipe as recipes
from polyak_lab.recipes.resolve import resolve

PAGE = (Path(__file__).parents[3] / "docs" / "recipes.md").read_text(encoding="utf-8")
SECTIONS = {
    "## The file": recipes._File,
    "### `data`": config.Data,
    "### `model`": config.Model,
    "### `optimizer`": config.Optimizer,
    "### `schedule`": config.Schedule,
    "### `training`": config.Training,
    "### `objective`": config.Objective,
}
ROW = {"name", "paper", "grid", "data", "model", "optimizer", "schedule", "training", "objective"}


def lines(heading):
    """Return the lines of the table below a heading: the keys and the default."""
    section = re.split(r"^#", PAGE[PAGE.index(heading) + len(heading) :], maxsplit=1, flags=re.MULTILINE)[0]
    rows = [line.strip("|").split(" | ") for line in section.splitlines() if line.startswith("| ")][1:]
    return {key: row[-1].strip(" |") for row in rows for key in re.findall(r"`\[*(\w+)\]*`", row[0])}


@pytest.mark.parametrize("heading", SECTIONS)
def test_every_key_of_a_section_is_documented(heading):
    known = {field.name: field.default for field in fields(SECTIONS[heading])}
    if heading == "### `optimizer`":
        del known["options"]  # the other keys of its table
    assert lines(heading).keys() == known.keys()


@pytest.mark.parametrize("heading", SECTIONS)
def test_the_defaults_are_those_of_the_code(heading):
    written = lines(heading)
    for field in fields(SECTIONS[heading]):
        if isinstance(field.default, (str, int, bool)) and field.name not in ("title", "note", "seed"):
            assert written[field.name].strip("`") == str(field.default).removeprefix("T").replace("False", "false")
        if field.default is MISSING and field.default_factory is MISSING:
            assert written[field.name] == "required"


def test_every_loss_is_documented():
    assert {*re.findall(r"`([\w-]+)`", PAGE.partition("### `objective`")[2].partition("##")[0])} >= {*OBJECTIVES}


def test_every_key_of_a_row_and_of_a_search_is_documented():
    search = pytest.importorskip("polyak_lab.sweep.search", reason="needs Optuna", exc_type=Exception)
    from polyak_lab.sweep.axes import Interval

    assert lines("## A row").keys() == ROW
    names = {field.name for cls in (search.Sweep, Interval) for field in fields(cls)}
    assert lines("## A search").keys() == names


def test_every_name_is_documented():
    assert {*re.findall(r"`([\w-]+)`", PAGE.partition("### `model`")[2].partition("###")[0])} >= {*models.NAMES}
    of_torch = {*OPTIMIZERS} - {*METHODS}  # a method's name is that of its class
    assert {*re.findall(r"`([\w-]+)`", PAGE.partition("### `optimizer`")[2].partition("###")[0])} >= of_torch


def test_the_example_is_a_recipe(tmp_path):
    (tmp_path / "example.toml").write_text(re.search(r"```toml\n(.*?)```", PAGE, re.DOTALL)[1], encoding="utf-8")
    rows = recipes.load(tmp_path / "example.toml").rows
    assert [resolve(row.run).optimizer.name for row in rows] == ["alig", "sgd"]
