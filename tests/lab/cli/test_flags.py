"""The flags of `polyak train`: one for every field of a run, each with its help."""

import re
from dataclasses import fields
from typing import get_args, get_type_hints

import pytest

from lab.runs import call
from polyak_lab.config import run as config
from polyak_lab.optimizers import OPTIMIZERS
from polyak_lab.schedules import SCHEDULES

SPELLINGS = [  # of 0.1.0, which people have in their scripts
    *("--data", "--model", "--optimizer", "--lr", "--momentum", "--l2-ball", "--radius", "--set"),
    *("--schedule", "--milestones", "--factor", "--epochs", "--batch-size", "--seed", "--shuffle-seed"),
    *("--augment", "--eval-protocol", "--device", "--threads", "--precision", "--channels-last"),
    *("--compile", "--cuda-graph", "--out"),
]
SECTIONS = (config.Data, config.Model, config.Optimizer, config.Schedule, config.Training, config.Objective)
RENAMED = {(section, "name"): section.__name__.lower() for section in SECTIONS}
RENAMED |= {(section, "version"): f"{section.__name__.lower()}-version" for section in SECTIONS}


@pytest.fixture
def text(capsys, monkeypatch):
    """The help of `polyak train` in a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    assert call("train", "--help") == 0
    return capsys.readouterr().out


def test_every_flag_keeps_its_spelling(text):
    assert {*SPELLINGS} <= {*re.findall(r"(?<![\w-])--[\w-]+", text)}


def test_the_help_names_every_optimizer(text):
    assert {*OPTIMIZERS} <= {*re.findall(r"[\w-]+", text)}


def test_every_field_of_a_run_is_a_flag(text):
    flags = {*re.findall(r"(?<![\w-])--[\w-]+", text)}
    names = [RENAMED.get((section, field.name), field.name) for section in SECTIONS for field in fields(section)]
    assert {f"--{name.replace('_', '-')}" for name in names if name != "options"} <= flags


def test_the_help_fits_a_terminal_and_explains_every_flag(text):
    assert max(map(len, text.splitlines())) <= 80
    plain = re.sub(r"[│╭╮╰╯─|+]", " ", text)
    entries = re.findall(r"^ +(--[a-z].*?)(?=^ +--|^ *$|\Z)", plain, re.MULTILINE | re.DOTALL)
    described = {entry.split()[0]: re.sub(r"\(.*?\)", "", " ".join(entry.split())) for entry in entries}
    assert len(described) >= len(SPELLINGS) - 1  # --radius and --l2-ball share an entry
    assert [flag for flag, words in described.items() if not re.search(r"[a-z0-9]\w* .*\.", words)] == []


def test_the_choices_are_those_of_the_code():
    assert set(get_args(get_type_hints(config.Schedule)["name"])) == set(SCHEDULES)


WRONG = {
    "a count": (("--batch-size", 0), "training.batch_size is 0, but must be 1 or more."),
    "a part": (("--holdout", 0), "data.holdout is 0, but must be 1 or more."),
    "a width": (("--kernel-width", -1.0), "data.kernel_width is -1.0, but must be a positive number of at most 1e+18."),
    "a norm": (("--clip-norm", 0.0), "training.clip_norm is 0.0, but must be a positive number of at most 3.4e+38."),
    "a pair": (("--set", "c:2"), "--set 'c:2': write KEY=VALUE, such as c=0.2 or nesterov=true."),
    "two values of lr": (("--lr", 0.3, "--set", "lr=0.5"), "--lr 0.3 and --set lr=0.5 are given: write one of them."),
    "one value of lr twice": (("--lr", 1, "--set", "lr=1"), "--lr 1 and --set lr=1 are given: write one of them."),
    "momentum": (
        ("--momentum", 0, "--set", "momentum=0.9"),
        "--momentum 0 and --set momentum=0.9 are given: write one of them.",
    ),
    "two pairs": (("--set", "eps=0.1", "--set", "eps=0.2"), "--set gives 'eps' twice: write it once."),
    "two of a model": (("--model-set", "a=1", "--model-set", "a=1"), "--model-set gives 'a' twice: write it once."),
    "two of data": (("--data-set", "a=1", "--data-set", "a=2"), "--data-set gives 'a' twice: write it once."),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_value_is_refused_in_a_sentence(case, tmp_path, capsys):
    flags, message = WRONG[case]
    command = ("train", "--data", "digits", "--model", "mlp", "--optimizer", "alig", *flags, "--out", tmp_path / "run")
    assert call(*command) == 1
    assert capsys.readouterr().err == f"polyak: {message}\n"
    assert not (tmp_path / "run").exists()


def test_an_unknown_choice_is_a_usage_error(tmp_path, capsys):
    command = ("train", "--data", "digits", "--model", "mlp", "--optimizer", "alig", "--schedule", "linear")
    assert call(*command, "--out", tmp_path / "run") == 2
    assert "linear" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--row", "--seeds"])
def test_a_flag_without_its_values_is_a_usage_error(flag, tmp_path, capsys):
    assert call("run", tmp_path / "recipe.toml", "--out", tmp_path / "runs", flag) == 2
    said = " ".join(re.sub(r"[│|]", " ", capsys.readouterr().err).split())
    assert f"Error parsing {flag}: write one or more values after it, or leave it out" in said
