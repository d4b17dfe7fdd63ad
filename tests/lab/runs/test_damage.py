"""Damaged files of a run folder: a sentence that names the file, and never a traceback or another number."""

import json
import math
import os
import re

import pytest
import torch

from lab.damage import CONTENTS, assert_named
from lab.runs import call, execute, run
from polyak_lab.config.run import content_hash
from polyak_lab.errors import LabError
from polyak_lab.runs import documents, stored
from polyak_lab.runs.stored import Label

DOCUMENTS = ("config.json", "summary.json", "environment.json")
LINES = ("metrics.jsonl", "timings.jsonl")
READERS = {
    "config.json": documents.read_config,
    "summary.json": documents.read_summary,
    "environment.json": documents.read_starts,
    "metrics.jsonl": documents.read_metrics,
    "timings.jsonl": documents.read_timings,
}
NO_LINES_YET = {(name, "empty document") for name in LINES}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("finished") / "run"
    execute(root, run(epochs=2, model="logistic"), Label("ALI-G", "t", 0, 93.5))
    return {entry.name: entry.read_bytes() for entry in root.iterdir()}


@pytest.fixture
def folder(finished, tmp_path):
    path = tmp_path / "run"
    path.mkdir()
    for name, content in finished.items():
        (path / name).write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [(name, content) for name in READERS for content in CONTENTS if (name, content) not in NO_LINES_YET],
)
def test_content_of_another_kind(name, content, folder):
    (folder / name).write_bytes(CONTENTS[content])
    with pytest.raises(LabError) as caught:
        READERS[name](folder / name)
    assert_named(caught.value, folder / name)


@pytest.mark.parametrize("name", READERS)
def test_every_key_missing_or_of_another_type(name, folder):
    """Also without a checksum, as an older version wrote it."""
    table = json.loads((folder / name).read_text().splitlines()[0] if name in LINES else (folder / name).read_text())
    table.pop("checksum", None)
    keys = {"config.json": ["hash", "label", "run"], "summary.json": ["hash", "seconds", "final"]}.get(name, table)
    for key in set(keys) & (set(table) - {"train_accuracy", "skipped", "weight_norm", "gradient_norm"}):
        others = [{k: v for k, v in table.items() if k != key}]
        others += [{**table, key: value} for value in ("text", [1], {}, True) if type(value) is not type(table[key])]
        for other in others:
            (folder / name).write_text(json.dumps(other) + "\n")
            with pytest.raises(LabError) as caught:
                READERS[name](folder / name)
            assert_named(caught.value, folder / name)


@pytest.mark.parametrize("keys", [("optimizer",), ("optimizer", "name"), ("optimizer", "options"), ("training",)])
@pytest.mark.parametrize("value", [None, "", 3, [1], True])
def test_a_configuration_of_other_types(keys, value, folder):
    """With the hash that belongs to it, so that only its types tell."""
    if keys[-1] == "name" and value == "":
        value = {}
    table = json.loads((folder / "config.json").read_text())
    del table["checksum"]
    *above, last = keys
    part = table["run"]
    for key in above:
        part = part[key]
    part[last] = value
    table["hash"] = content_hash(table["run"])
    (folder / "config.json").write_text(json.dumps(table))
    with pytest.raises(LabError, match=re.escape(f"run.{'.'.join(keys)} has the wrong type or value")):
        documents.read_config(folder / "config.json")


@pytest.mark.parametrize("name", [*READERS, "checkpoint.pt"])
@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "link to itself"])
def test_something_else_in_the_place_of_a_file(name, kind, folder):
    path = folder / name
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero" if kind == "device" else name)
    with pytest.raises(LabError) as caught:
        READERS.get(name, documents.read_bytes)(path)
    assert_named(caught.value, path)


def test_a_file_too_large_to_be_of_a_run(folder):
    with (folder / "metrics.jsonl").open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(LabError, match=r"metrics\.jsonl: it has 1,099,511,627,776 bytes"):
        stored.load_run(folder)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_digit_of_a_document(name, folder):
    """JSON as before, and another number: its checksum tells."""
    text = (folder / name).read_text()
    at = next(match.start() for match in re.finditer(r"(?<=: )[1-8]", text))
    (folder / name).write_text(f"{text[:at]}{int(text[at]) + 1}{text[at + 1 :]}")
    with pytest.raises(LabError, match=r"its (checksum|hash) does not match its"):
        READERS[name](folder / name)


def test_a_document_of_an_older_version_has_no_checksum(folder):
    for name in DOCUMENTS:
        table = json.loads((folder / name).read_text())
        del table["checksum"]
        (folder / name).write_text(json.dumps(table))
    assert stored.load_run(folder).finished


def test_what_is_no_finite_number_comes_back_as_one(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text(json.dumps(json.loads(lines[0]) | {"train_loss": "inf"}) + "\n")
    assert documents.read_metrics(folder / "metrics.jsonl")[0]["train_loss"] == math.inf


def test_a_line_that_is_being_written_does_not_count_yet(folder):
    content = (folder / "metrics.jsonl").read_bytes()
    (folder / "metrics.jsonl").write_bytes(content[:-10])
    assert len(documents.read_metrics(folder / "metrics.jsonl")) == 1


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "summary.json"])
def test_one_bad_run_hides_no_table(name, folder, finished, tmp_path, capsys):
    (tmp_path / "other").mkdir()
    for file, content in finished.items():
        (tmp_path / "other" / file).write_bytes(content if file != name else b"{}\n")
    assert call("table", tmp_path) == 0
    printed = capsys.readouterr()
    assert "ALI-G" in printed.out
    assert re.fullmatch(rf"polyak: [^\n]*other/{re.escape(name)} is damaged [^\n]+\n", printed.err)


def test_a_table_of_bad_runs_alone(folder, capsys):
    (folder / "config.json").write_bytes(b"\xff")
    assert call("table", folder) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert said[1].startswith("polyak: The only run in ")


BAD_STATES = {
    "epochs": lambda content: content.update(epochs=-1),
    "more epochs": lambda content: content.update(epochs=99),
    "epochs as text": lambda content: content.update(epochs="2"),
    "no state": lambda content: content.pop("state"),
    "state": lambda content: content.update(state=[]),
    "model": lambda content: content["state"].update(model=None),
    "a weight": lambda content: content["state"]["model"].update({"1.weight": torch.zeros(3)}),
    "no lr": lambda content: content["state"]["optimizer"]["param_groups"][0].pop("lr"),
    "lr": lambda content: content["state"]["optimizer"]["param_groups"][0].update(lr="fast"),
    "groups": lambda content: content["state"]["optimizer"].update(param_groups={}),
    "a buffer": lambda content: content["state"]["optimizer"]["state"][0].update(momentum_buffer=torch.zeros(3)),
    "a buffer as text": lambda content: content["state"]["optimizer"]["state"][0].update(momentum_buffer="v"),
    "buffers": lambda content: content["state"]["optimizer"].update(state=[1]),
    "format": lambda content: content.update(format="one"),
}


@pytest.mark.parametrize("case", BAD_STATES)
def test_a_checkpoint_of_the_right_form_and_the_wrong_content(case, folder):
    (folder / "summary.json").unlink()
    content = torch.load(folder / "checkpoint.pt", weights_only=True)
    BAD_STATES[case](content)
    torch.save(content, folder / "checkpoint.pt")
    with pytest.raises(LabError) as caught:
        execute(folder, run(epochs=2, model="logistic"), Label("ALI-G", "t", 0, 93.5))
    assert_named(caught.value, folder / "checkpoint.pt")


@pytest.mark.parametrize("content", [None, 3, [1], {}, {"format": 1}, "text"])
def test_a_checkpoint_of_another_form(content, folder):
    (folder / "summary.json").unlink()
    torch.save(content, folder / "checkpoint.pt")
    with pytest.raises(LabError) as caught:
        execute(folder, run(epochs=2, model="logistic"), Label("ALI-G", "t", 0, 93.5))
    assert_named(caught.value, folder / "checkpoint.pt")


@pytest.mark.parametrize("keys", [("training", "seed"), ("training", "shuffle_seed"), ("data",)])
@pytest.mark.parametrize("value", [None, "", 2.5, [1]])
def test_a_configuration_without_what_tables_read(keys, value, folder):
    """With the hash that belongs to it: None stands for a key that is missing."""
    table = json.loads((folder / "config.json").read_text())
    del table["checksum"]
    part = table["run"]
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value
    if value is None and keys != ("data",):
        del part[keys[-1]]
    table["hash"] = content_hash(table["run"])
    (folder / "config.json").write_text(json.dumps(table))
    with pytest.raises(LabError, match=re.escape(f"run.{'.'.join(keys)} ")):
        documents.read_config(folder / "config.json")


def test_a_run_that_ends_while_it_is_read_is_not_finished_with_fewer_epochs(folder, finished, monkeypatch):
    """Its summary appears after its metrics were read."""
    (folder / "summary.json").unlink()
    whole = (folder / "metrics.jsonl").read_bytes()
    (folder / "metrics.jsonl").write_bytes(whole.splitlines(keepends=True)[0])
    read = documents.read_metrics

    def read_and_end(source):
        records = read(source)
        (folder / "metrics.jsonl").write_bytes(whole)
        (folder / "summary.json").write_bytes(finished["summary.json"])
        return records

    monkeypatch.setattr(documents, "read_metrics", read_and_end)
    run = stored.load_run(folder)
    assert (run.finished, len(run.records)) == (False, 1)
    monkeypatch.undo()
    run = stored.load_run(folder)
    assert (run.finished, len(run.records)) == (True, 2)


DAMAGES = {
    "summary.json": lambda path: path.write_text("x"),
    "metrics.jsonl": lambda path: path.write_text("".join(path.read_text().splitlines(True)[:-1])),
}
SEVERAL_RUNS = """
seeds = [0, 1]
[defaults]
data = "digits"
model = "logistic"
training = { epochs = 2, max_batches = 1, device = "cpu", threads = 1 }
[[row]]
name = "A"
optimizer = { name = "sgd", lr = 0.1 }
[[row]]
name = "B"
optimizer = { name = "alig", lr = 0.1 }
"""


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_run_of_a_recipe_is_no_success(name, jobs, tmp_path, capsys):
    recipe, runs = tmp_path / "recipe.toml", tmp_path / "runs"
    recipe.write_text(SEVERAL_RUNS)
    assert call("run", recipe, "--out", runs) == 0
    DAMAGES[name](runs / "a" / "seed-1" / name)
    capsys.readouterr()
    assert call("run", recipe, "--out", runs, "--jobs", jobs) == 1
    out, err = capsys.readouterr()
    assert out.startswith("3 of 4 runs were finished before.\n")
    assert re.search(r"│ A +│.*│ 1 │\n│ B +│.*│ 2 │\n", out)
    first, last = err.splitlines()
    assert str(runs / "a" / "seed-1" / name) in first
    assert last.startswith("polyak: 1 of 4 runs is damaged and not in the table: restore ")
    DAMAGES[name](runs / "b" / "seed-0" / name)
    assert call("run", recipe, "--out", runs, "--row", "B") == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("polyak: 1 of 2 runs is damaged")  # of those it trains


@pytest.mark.parametrize("name", DAMAGES)
def test_a_recipe_of_damaged_runs_alone_names_each(name, tmp_path, capsys):
    recipe, runs = tmp_path / "recipe.toml", tmp_path / "runs"
    recipe.write_text(SEVERAL_RUNS)
    assert call("run", recipe, "--out", runs, "--row", "A") == 0
    for seed in (0, 1):
        DAMAGES[name](runs / "a" / f"seed-{seed}" / name)
    capsys.readouterr()
    assert call("run", recipe, "--out", runs, "--row", "A") == 1
    *each, last = capsys.readouterr().err.splitlines()
    assert len(each) == 2
    assert last.startswith("polyak: None of the 2 runs in ")
