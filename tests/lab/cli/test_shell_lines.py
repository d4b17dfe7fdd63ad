"""Every shell line of the pages runs, in its order, as it is printed; only its training is cut to one batch.

`<!-- not run: reason -->` above a block leaves it out; it is only for what needs more than one machine.
"""

import re
import shlex
import subprocess
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from lab import archives
from lab.runs import call
from observe import SMALL_BALLS
from polyak_lab.cli import train
from polyak_lab.recipes.resolve import resolve
from polyak_lab.training import build

ROOT = Path(__file__).parents[3]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "results/README.md")]
PAGES += [page for page in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in page.parts]
FENCE = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^\n]+?) -->\n)?^```(?:bash|sh|console|shell)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
LAUNCHER = ["torchrun", "--nproc-per-node", "2", "--no-python"]  # the tests of processes start it


def lines(page: Path) -> list[list[str]]:
    blocks = FENCE.finditer(page.read_text(encoding="utf-8"))
    code = [line for block in blocks if not block["reason"] for line in block["code"].replace("\\\n", "").splitlines()]
    return [words for line in code if (words := shlex.split(line, comments=True))]


SHELL = {page: found for page in PAGES if (found := lines(page))}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A checkout's recipes, a small copy of every data set, and a text, in an empty folder."""
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    (tmp_path / "file.txt").write_text("The quick brown fox jumps over the lazy dog.\n" * 400, encoding="utf-8")
    data = tmp_path / "data"
    archives.unpacked(data, archives.CIFAR10_FOLDER, archives.cifar10_files())
    archives.unpacked(data, archives.CIFAR100_FOLDER, archives.cifar100_files())
    archives.mnist(data / "fashion-mnist")
    (data / "mushrooms").mkdir()
    (data / "mushrooms" / "mushrooms").write_text(archives.MUSHROOM_ROWS)
    monkeypatch.setenv("POLYAK_DATA", str(data))
    monkeypatch.setattr(train, "resolve", lambda run: resolve(cut(run)))
    monkeypatch.chdir(tmp_path)
    build.load_dataset.cache_clear()
    yield tmp_path
    build.load_dataset.cache_clear()


def cut(run):
    training = replace(run.training, epochs=1, max_batches=1, batch_size=2, threads=1, device="cpu")
    return replace(run, data=replace(run.data, holdout=None, train_size=None), training=training)


def run(words: list[str]) -> None:
    """Run one line, or check it where it installs or tests the project itself."""
    if words[: len(LAUNCHER)] == LAUNCHER:
        words = words[len(LAUNCHER) :]
    program, *arguments = words
    if program == "make":
        subprocess.run(["make", "-n", *arguments], cwd=ROOT, check=True, capture_output=True)
    elif program == "pip":
        check_installs(arguments)
    else:
        assert program in ("polyak", ".venv/bin/polyak"), program
        assert call(*arguments) == 0


def check_installs(arguments: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert arguments[0] == "install"
    for argument in arguments[1:]:
        extras = re.fullmatch(r"(?:\.|polyak)(?:\[([\w,]+)\])?", argument)
        if extras and extras[1]:
            assert {*extras[1].split(",")} <= project["optional-dependencies"].keys()
        assert extras or argument in ("torch", "--index-url") or argument.startswith("https://download.pytorch.org/")


@pytest.mark.parametrize("page", SHELL, ids=lambda page: str(page.relative_to(ROOT)))
@pytest.mark.filterwarnings(SMALL_BALLS)
def test_every_shell_line_of_a_page_runs(page, place):
    for words in SHELL[page]:
        run(words)


def test_the_pages_show_how_to_start():
    assert len(SHELL[ROOT / "README.md"]) >= 6


@pytest.mark.parametrize(
    "line", ["polyak tabel", "polyak run recipes/demo.toml --row nobody", "ls", "pip install '.[l]'"]
)
def test_a_wrong_line_would_be_noticed(line, place):
    with pytest.raises(AssertionError):
        run(shlex.split(line))
