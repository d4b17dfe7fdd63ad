"""Packed runs: the same tables, pages and comparisons as of their folders, and damage of a line in one sentence."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.damage import CONTENTS, assert_named
from lab.runs import ALIG, call, execute, run
from polyak_lab.config import run as config
from polyak_lab.console import printable
from polyak_lab.errors import LabError
from polyak_lab.report import curves, run_list, table
from polyak_lab.runs import packed, stored
from polyak_lab.runs.stored import Label

OLD = Path(__file__).with_name("version_0_1_0")
FORMATS = ("terminal", "markdown", "latex", "csv", "csv-seeds")
SGD = config.Optimizer("sgd", options={"lr": 1e6})  # diverges: its losses are stored as "nan"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("trained")
    for row, optimizer in (("ALI-G", ALIG), ("SGD", SGD)):
        for seed in (0, 1):
            wanted = run(optimizer, epochs=2, model="logistic", seed=seed)
            execute(root / row.lower() / f"seed-{seed}", wanted, Label(row, "t", int(row == "SGD"), 93.5))
    return root


@pytest.fixture
def runs(trained, tmp_path):
    return Path(shutil.copytree(trained, tmp_path / "runs"))


@pytest.fixture(scope="module")
def content(trained, tmp_path_factory):
    """The bytes of the packed runs."""
    folder = tmp_path_factory.mktemp("packed")
    assert call("pack", trained, "-o", folder) == 0
    return (folder / "runs.jsonl").read_bytes()


@pytest.fixture
def file(content, tmp_path):
    """A packed file, to write in."""
    (tmp_path / "runs.jsonl").write_bytes(content)
    return tmp_path / "runs.jsonl"


def printed(capsys, *arguments):
    assert call(*arguments) == 0
    output = capsys.readouterr()
    assert output.err == ""
    return output.out


def page(root, path, capsys):
    """The report without the links to configurations."""
    printed(capsys, "report", root, "-o", path)
    return re.sub(r'<a href="[^"]*">(config\.json|runs\.jsonl)<', "<a>config<", path.read_text())


def rows(root):
    return table.groups(stored.find_runs([root]))


def everything(root, tmp_path, capsys):
    tables = [printed(capsys, "table", root, "--format", form, "--against", "SGD") for form in FORMATS]
    first, second = (root / row for row in ("ali-g", "sgd"))
    comparison = printed(capsys, "compare", first, second, "--metric", "test_accuracy")
    one = printed(capsys, "table", first / "seed-1", "--format", "csv-seeds")
    return tables, comparison, one, curves.page_data(rows(root)), page(root, tmp_path / "report.html", capsys)


def test_tables_pages_and_comparisons_are_those_of_the_folders(runs, tmp_path, capsys):
    before = everything(runs, tmp_path, capsys)
    assert call("pack", runs, "--out", runs) == 0
    for row in ("ali-g", "sgd"):
        shutil.rmtree(runs / row)
    capsys.readouterr()
    assert everything(runs, tmp_path, capsys) == before
    assert call("table", runs / "runs.jsonl", "--format", "csv-seeds", "--against", "SGD") == 0
    assert capsys.readouterr().out == before[0][-1]
    assert '<a href="./runs/runs.jsonl">runs.jsonl<' in (tmp_path / "report.html").read_text()


def test_every_document_comes_back(trained, file):
    for one in packed.read(file):
        folder = trained / one.name
        assert one.get("metrics.jsonl").content == (folder / "metrics.jsonl").read_bytes()
        for name in packed.DOCUMENTS:
            assert one.get(name).content.split() == (folder / name).read_bytes().split()
    assert {run.files.name for run in stored.find_runs([file])} == {
        "ali-g/seed-0",
        "ali-g/seed-1",
        "sgd/seed-0",
        "sgd/seed-1",
    }


def test_a_run_in_a_folder_and_packed_counts_once(runs, capsys):
    assert call("pack", runs, "--out", runs) == 0
    capsys.readouterr()
    assert call("table", runs, "--format", "csv-seeds") == 0
    output = capsys.readouterr()
    assert len(output.out.splitlines()) == 1 + 4
    assert re.search(r"line 1 of \S+/runs\.jsonl and \S+/ali-g/seed-0 hold the same run, which counts once", output.err)


def test_packing_again_adds_runs_and_loses_none(runs, tmp_path, capsys):
    out = tmp_path / "results"
    shutil.move(runs / "sgd" / "seed-1", tmp_path / "later")
    assert call("pack", runs, "--out", out) == 0
    before = (out / "runs.jsonl").read_bytes()
    assert call("pack", runs, "--out", out) == 0
    assert (out / "runs.jsonl").read_bytes() == before
    shutil.move(tmp_path / "later", runs / "sgd" / "seed-1")
    assert call("pack", runs, "--out", out / "runs.jsonl") == 0
    after = (out / "runs.jsonl").read_bytes()
    assert {*before.splitlines()} < {*after.splitlines()}
    shutil.rmtree(runs / "ali-g")
    capsys.readouterr()
    assert call("pack", runs, "--out", out) == 1
    assert re.fullmatch(
        r"polyak: \S+ exists, and 2 of its 4 lines are not among these runs: [^\n]+ --overwrite\.\n",
        capsys.readouterr().err,
    )
    assert (out / "runs.jsonl").read_bytes() == after
    assert call("pack", runs, "--out", out, "--overwrite") == 0
    assert len((out / "runs.jsonl").read_bytes().splitlines()) == 2


def test_packed_files_are_packed_together(runs, tmp_path, capsys):
    for row in ("ali-g", "sgd"):
        assert call("pack", runs / row, "-o", tmp_path / "parts" / row) == 0
    assert call("pack", tmp_path / "parts", "-o", tmp_path / "one") == 0
    assert call("pack", runs, "-o", tmp_path / "other") == 0
    assert (tmp_path / "one" / "runs.jsonl").read_bytes() == (tmp_path / "other" / "runs.jsonl").read_bytes()


PATHS = {
    "one run": (["ali-g/seed-1"], ["seed-1"]),
    "a row": (["ali-g"], ["seed-0", "seed-1"]),
    "all rows": (["ali-g", "sgd"], ["ali-g/seed-0", "ali-g/seed-1", "sgd/seed-0", "sgd/seed-1"]),
    "one run twice": (["ali-g/seed-1", "sgd/../ali-g/seed-1"], ["seed-1"]),
    "a row and one of its runs": (["ali-g", "ali-g/seed-1"], ["seed-0", "seed-1"]),
    "runs of two rows": (["ali-g/seed-0", "sgd/seed-0"], ["ali-g/seed-0", "sgd/seed-0"]),
}


@pytest.mark.parametrize("case", PATHS)
@pytest.mark.parametrize("is_relative", [True, False])
def test_paths_are_relative_to_what_the_given_folders_share(case, is_relative, runs, tmp_path, monkeypatch):
    monkeypatch.chdir(runs)
    given_paths, names = PATHS[case]
    paths = [Path(path) if is_relative else runs / path for path in given_paths]
    assert call("pack", *paths, "-o", tmp_path / "out") == 0
    assert [one.name for one in packed.read(tmp_path / "out" / "runs.jsonl")] == names


LEFT_OUT = {
    "unfinished": lambda folder: (folder / "summary.json").unlink(),
    "no environment": lambda folder: (folder / "environment.json").unlink(),
    "no timings": lambda folder: (folder / "timings.jsonl").unlink(),
    "damaged timings": lambda folder: (folder / "timings.jsonl").write_text("[]\n"),
    "damaged environment": lambda folder: (folder / "environment.json").write_text("{}\n"),
    "damaged configuration": lambda folder: (folder / "config.json").write_text("{}\n"),
    "a line less": lambda folder: (folder / "metrics.jsonl").write_bytes(
        (folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)[0]
    ),
    "a name that no line can have": lambda folder: folder.rename(folder.with_name("seed\n0")),
}


@pytest.mark.parametrize("case", LEFT_OUT)
def test_a_run_that_is_not_whole_is_left_out(case, runs, tmp_path, capsys):
    LEFT_OUT[case](runs / "sgd" / "seed-0")
    assert call("pack", runs, "-o", tmp_path) == 0
    output = capsys.readouterr()
    assert output.out.startswith(f"{tmp_path}/runs.jsonl: 3 runs, ")
    assert output.out.endswith("; 1 left out\n")
    assert re.fullmatch(r"polyak: [^\n]*sgd/seed[^\n]+\.\n", output.err)
    assert len(stored.find_runs([tmp_path / "runs.jsonl"])) == 3


@pytest.mark.parametrize("name", ["seed\n0", os.fsdecode(b"seed-\xff")])
def test_a_path_that_no_line_can_have_is_named(name, runs, tmp_path, capsys):
    (runs / "sgd" / "seed-0").rename(runs / "sgd" / name)
    assert call("pack", runs, "-o", tmp_path) == 0
    assert capsys.readouterr().err == (
        f"polyak: {printable(str(runs / 'sgd' / name))} is left out: its path is longer than 1000 characters, "
        "or some cannot be printed: rename it.\n"
    )


def test_nothing_is_written_where_no_run_is_whole(runs, tmp_path, capsys):
    for summary in runs.rglob("summary.json"):
        summary.unlink()
    assert call("pack", runs, "-o", tmp_path) == 1
    assert capsys.readouterr().err.splitlines()[-1].endswith("runs.jsonl is not written.")
    assert not (tmp_path / "runs.jsonl").exists()


@pytest.mark.parametrize("out", ["a file/below", "metrics.jsonl", "a folder.jsonl"])
def test_a_place_that_cannot_be_written(out, runs, tmp_path, capsys):
    (tmp_path / "a file").write_text("")
    (tmp_path / "a folder.jsonl").mkdir()
    assert call("pack", runs, "-o", tmp_path / out) == 1
    assert re.fullmatch(r"polyak: [^\n]+\.\n", capsys.readouterr().err)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_run_of_version_0_1_0_is_packed(tmp_path, capsys):
    expected = printed(capsys, "table", OLD / "finished", "--format", "csv")
    assert call("pack", OLD / "finished", "-o", tmp_path) == 0
    capsys.readouterr()
    assert printed(capsys, "table", tmp_path / "runs.jsonl", "--format", "csv") == expected


def changed(**values):
    return lambda line: json.dumps({**json.loads(line), **values}).encode()


def without(key):
    return lambda line: json.dumps({k: v for k, v in json.loads(line).items() if k != key}).encode()


def inside(name, change):
    def edit(line):
        table = json.loads(line)
        change(table[name])
        return json.dumps(table).encode()

    return edit


KEYS = ("path", *packed.DOCUMENTS)
LINES = {name: lambda line, content=content: content.rstrip(b"\n") for name, content in CONTENTS.items()}
LINES |= {f"cut after {part:.0%}": lambda line, part=part: line[: int(part * len(line))] for part in (0.01, 0.5, 0.999)}
LINES |= {f"no {key}": without(key) for key in KEYS}
LINES |= {f"{key} is {value!r}": changed(**{key: value}) for key in KEYS for value in (None, 3, True, [3])}
LINES |= {f"{key} is another container": changed(**{key: [] if key.endswith(".json") else {}}) for key in KEYS}
ABSURD = (
    "",
    ".",
    "..",
    "../../x",
    "a/../../x",
    "a/..",
    "/etc",
    "//a",
    "a//b",
    "./a",
    "a/",
    "a/.",
    "a\nb",
    "a\0b",
    "\ud800",
)
LINES |= {f"path is {path!a}": changed(path=path) for path in (*ABSURD, "a" * 10_000)}
LINES |= {
    "another key": changed(more=1),
    "the path of another line": changed(path="ali-g/seed-0"),
    "another configuration": inside("config.json", lambda table: table["run"]["training"].update(seed=7)),
    "another label": inside("config.json", lambda table: table["label"].update(paper=99.0)),
    "another hash": inside("summary.json", lambda table: table.update(hash="0")),
    "another end": inside("summary.json", lambda table: table.update(seconds=3.0)),
    "another number": inside("metrics.jsonl", lambda lines: lines[0].update(test_accuracy=0.99)),
    "an epoch less": inside("metrics.jsonl", lambda lines: lines.pop()),
    "no epoch": inside("metrics.jsonl", lambda lines: lines.clear()),
    "an epoch twice": inside("metrics.jsonl", lambda lines: lines.append(lines[-1])),
    "a line of text": inside("metrics.jsonl", lambda lines: lines.append("text")),
    "an order of its own": inside("metrics.jsonl", lambda lines: lines.reverse()),
}


@pytest.mark.parametrize("case", LINES)
def test_a_damaged_line_is_named_and_hides_no_other(case, file):
    lines = file.read_bytes().splitlines()
    lines[2] = LINES[case](lines[2])
    file.write_bytes(b"\n".join(lines) + b"\n")
    problems = []
    found = stored.find_runs([file], problems.append)
    assert len(found) == 3
    (problem,) = problems
    assert_named(problem, file)
    assert "line 3 of" in str(problem)


@pytest.mark.parametrize("case", ["cut after 50%", "an epoch less", "the path of another line", "another label"])
def test_a_report_lists_a_damaged_line(case, file, capsys):
    lines = file.read_bytes().splitlines()
    file.write_bytes(b"\n".join([*lines[:3], LINES[case](lines[3])]))
    assert call("report", file, "-o", file.with_name("page.html")) == 0
    assert re.fullmatch(r"polyak: [^\n]*line 4 of [^\n]+\.\n", capsys.readouterr().err)
    source = file.with_name("page.html").read_text()
    assert "1 of 4 runs is unfinished, empty or damaged" in source
    name = "sgd/seed-1" if case in ("an epoch less", "another label") else "runs.jsonl, line 4"
    (line,) = re.findall(rf'<th scope="row">{name}</th>.*?</tr>', source, re.DOTALL)
    assert "line 4 of" in line
    assert 'href="./runs.jsonl">runs.jsonl<' in line


def test_damage_that_no_table_shows_hides_no_run(file, capsys):
    """As in a run folder: times are missing in the report then."""
    text = file.read_text().replace('"images_per_second"', '"speed"')
    file.write_text(text)
    assert len(stored.find_runs([file])) == 4
    assert {run_list.read_timing(run) for run in stored.find_runs([file])} == {run_list.Timing(None, None)}


def test_a_line_without_its_newline_counts(file):
    file.write_bytes(file.read_bytes().rstrip(b"\n"))
    assert len(stored.find_runs([file])) == 4


FILES = {
    "an empty file": lambda path: path.write_text(""),
    "a document of a run": lambda path: path.rename(path.with_name("metrics.jsonl")),
    "a folder": lambda path: path.unlink() or path.mkdir(),
    "not there": lambda path: path.unlink(),
    "one damaged line": lambda path: path.write_bytes(b"\xff\n"),
    "not a text": lambda path: path.write_bytes(bytes(range(256)) * 10),
    "a link to itself": lambda path: path.unlink() or path.symlink_to(path),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_without_runs(case, file, capsys):
    FILES[case](file)
    path = file if case != "a document of a run" else file.with_name("metrics.jsonl")
    for verb in (["table"], ["report", "-o", file.with_name("page.html")], ["pack", "-o", file.with_name("out")]):
        assert call(*verb, path) == 1
        assert re.fullmatch(r"(polyak: [^\n]{,400}\.\n)+", capsys.readouterr().err)
    with pytest.raises(LabError):
        stored.find_runs([path])


def test_a_folder_that_no_line_belongs_to(file, capsys):
    assert call("table", file.parent / "adam") == 1
    assert re.fullmatch(r"polyak: \S+/adam is not a folder: name one [^\n]+\.\n", capsys.readouterr().err)
    assert call("table", file.parent / "ali") == 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("damaged")


MUTATIONS = st.tuples(
    st.sampled_from(["change", "delete", "insert", "cut"]),
    st.floats(0, 1, exclude_max=True),
    st.binary(min_size=1, max_size=8),
)


@given(st.lists(MUTATIONS, min_size=1, max_size=3))
@settings(max_examples=60, deadline=None)
def test_no_damage_shows_another_number(content, folder, mutations):
    """Whatever happens to the bytes, a run is as it was trained or is named as a problem."""
    file, data = folder / "runs.jsonl", content
    file.write_bytes(data)
    known = [as_shown(run) for run in stored.find_runs([file])]
    for kind, where, some in mutations:
        at = int(where * len(data))
        end = {"change": at + len(some), "delete": at + len(some), "insert": at, "cut": len(data)}[kind]
        data = data[:at] + (some if kind in ("change", "insert") else b"") + data[end:]
    file.write_bytes(data)
    problems = []
    try:
        found = stored.find_runs([file], problems.append)
    except LabError as error:
        problems, found = [*problems, error], []
    assert all(as_shown(run) in known for run in found)
    assert len(found) == len(data.splitlines()) or problems
    for problem in problems:
        assert_named(problem, file)


def as_shown(run):
    return repr((run.label, run.config, run.records, run.finished))
