"""Every example in the documentation runs: the doctests of the library and the Python blocks of the pages.

The blocks of a page share one namespace and run in their order. `<!-- skip: reason -->` above a block leaves it out; it
is only for code that imports a package which the library does not need. The framework tests run those blocks, too.
"""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import json
import pkgutil
import re
import runpy
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import polyak

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *(page for page in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in page.parts)]
MODULES = [polyak.__name__, *(name for _, name, _ in pkgutil.walk_packages(polyak.__path__, "polyak."))]
MODULES.remove("polyak.integrations.lightning")  # its import needs Lightning

FENCE = re.compile(
    r"(?:^[ \t]*<!-- skip: (?P<reason>[^\n]+?) -->[ \t]*\n\s*?)?"
    r"^(?P<indent>[ \t]*)```python[^\n]*\n(?P<code>.*?)^(?P=indent)```[ \t]*$",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    """One Python block of a page."""

    line: int
    code: str
    skipped_for: str | None


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(text.count("\n", 0, match.start("code")) + 1, textwrap.dedent(match["code"]), match["reason"])
        for match in FENCE.finditer(text)
    ]


def optional_packages(code: str) -> set[str]:
    """Name the packages a piece of code imports that the library does not need."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module).split(".")[0])
    return found - sys.stdlib_module_names - {"torch", "polyak"}


def run(page: Path, *, everything: bool = False) -> int:
    """Run the blocks of a page, those that are left out only if everything is asked for; return how many ran."""
    namespace: dict[str, object] = {"__name__": page.stem}
    ran = [block for block in blocks(page) if everything or block.skipped_for is None]
    for block in ran:
        padding = "\n" * (block.line - 1)  # so that an error shows the line of the page
        exec(compile(padding + block.code, str(page), "exec"), namespace)
    return len(ran)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_a_module_run(name):
    torch.manual_seed(0)
    module = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0
    assert result.attempted > 0 or "    Example:" not in inspect.getsource(module)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_code_on_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    run(page)


def test_the_front_page_shows_code():
    assert run(ROOT / "README.md") > 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_code_is_only_left_out_for_a_package_that_the_library_does_not_need(page):
    for block in blocks(page):
        assert block.skipped_for is None or optional_packages(block.code), f"{page}:{block.line}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_python_fence_is_found(page):
    fences = re.findall(r"^[ \t]*```(?:python|py)\b", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(fences) == len(blocks(page))


def test_the_machinery_skips_numbers_and_dedents(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# Title\n\n```python\nx = 1\n```\n\n<!-- skip: needs nowhere -->\n```python\nimport nowhere\n```\n\n"
        "- item\n\n  ```python\n  assert x == 1\n  y = x / 0\n  ```\n",
        encoding="utf-8",
    )
    assert [block.skipped_for for block in blocks(page)] == [None, "needs nowhere", None]
    assert optional_packages(blocks(page)[1].code) == {"nowhere"}
    with pytest.raises(ZeroDivisionError) as caught:
        run(page)
    assert caught.traceback[-1].lineno + 1 == 16


NOTEBOOKS = sorted((ROOT / "docs").glob("*.ipynb"))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_the_cells_of_a_notebook_run(notebook, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    namespace: dict[str, object] = {"__name__": notebook.stem}
    for number, cell in enumerate(cells):
        assert cell.get("outputs", []) == []  # they would change with every run
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{notebook.name}, cell {number}", "exec"), namespace)
    assert min(namespace["alig"][2:]) > 0.85 > 0.5 > namespace["sgd"][-1]
    assert namespace["distances"][-1] < 1e-2 * namespace["distances"][0]


def test_the_table_of_the_readme_is_made_from_the_stored_runs(tmp_path):
    script = runpy.run_path(str(ROOT / "scripts" / "first-hour-table"))
    for page in script["PAGES"]:
        (tmp_path / page).parent.mkdir(exist_ok=True)
        (tmp_path / page).write_text((ROOT / page).read_text(encoding="utf-8").replace(" 84.0 ±", " 94.0 ±"))
    script["main"].__globals__["ROOT"] = tmp_path
    assert not script["main"](check=False)
    for page in script["PAGES"]:
        assert (tmp_path / page).read_text(encoding="utf-8") == (ROOT / page).read_text(encoding="utf-8")
    assert script["main"](check=True)


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 130
