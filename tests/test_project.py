"""The shape of the project: what an import loads, what is exported and documented, short functions, one version."""

from __future__ import annotations

import ast
import inspect
import json
import re
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import polyak

ROOT = Path(__file__).parent.parent
LIBRARY = ROOT / "src" / "polyak"
FILES = sorted(LIBRARY.rglob("*.py"))
INTEGRATIONS = sorted((LIBRARY / "integrations").glob("*.py"))

PUBLIC = {name: getattr(polyak, name) for name in polyak.__all__ if name != "metrics"}  # the one function
OPTIMIZERS = [cls for cls in PUBLIC.values() if issubclass(cls, polyak.PolyakOptimizer)]
METHODS = [cls for cls in OPTIMIZERS if cls is not polyak.PolyakOptimizer]
SETS = [cls for cls in PUBLIC.values() if issubclass(cls, polyak.Constraint) and cls is not polyak.Constraint]

TOP_LEVEL = "json.dumps(sorted({name.split('.')[0] for name in sys.modules}))"


def loaded(*statements: str) -> list[set[str]]:
    """Run statements in a fresh interpreter; return the top-level modules that are loaded after each."""
    script = "\n".join(["import json, sys", *(f"{statement}\nprint({TOP_LEVEL})" for statement in statements)])
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    return [set(json.loads(line)) for line in result.stdout.splitlines()]


def imports(path: Path) -> set[str]:
    """Name the top-level packages that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(str(node.module).split(".")[0])
    return found


def bodies_of_functions(path: Path) -> Iterator[int]:
    """Yield the number of lines of every function's body without the docstring."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            yield body[-1].end_lineno - body[0].lineno + 1 if body else 0


def documented(text: str, section: str) -> set[str]:
    """Name the entries of a section of a Google-style docstring."""
    found = re.search(rf"^{section}:\n((?:[ \t]+.*\n?|\n)+)", inspect.cleandoc(text), re.MULTILINE)
    return set(re.findall(r"^    (\w+):", found[1], re.MULTILINE)) if found else set()


def arguments(function: object) -> set[str]:
    return set(inspect.signature(function).parameters) - {"self"}  # type: ignore[arg-type]


# What an import loads


def test_the_library_loads_torch_and_nothing_else():
    with_torch, with_polyak = loaded("import torch", "import polyak")
    assert with_polyak - with_torch - sys.stdlib_module_names == {"polyak"}  # and so not polyak_lab


@pytest.mark.parametrize("path", sorted({*FILES} - {*INTEGRATIONS}), ids=lambda path: path.name)
def test_no_file_of_the_library_imports_anything_but_torch(path):
    kernels = {"triton"} if path.stem in ("cuda_kernels", "cuda") else set()  # PyTorch brings it along on CUDA
    assert imports(path) - sys.stdlib_module_names - {"__future__"} <= {"torch"} | kernels


@pytest.mark.parametrize("path", INTEGRATIONS, ids=lambda path: path.name)
def test_an_integration_imports_its_own_framework_at_most(path):
    own = {"lightning", "pytorch_lightning"} if path.stem == "lightning" else {path.stem}
    assert imports(path) - sys.stdlib_module_names - {"__future__"} <= {"torch"} | own


def test_the_runner_knows_the_library_and_not_the_other_way_round():
    assert not any("polyak_lab" in imports(path) for path in FILES)
    assert any("polyak" in imports(path) for path in (ROOT / "src" / "polyak_lab").rglob("*.py"))


# What is exported and documented


def test_the_exports_are_sorted_and_complete():
    names = {name for name, value in vars(polyak).items() if inspect.isclass(value)}
    assert set(polyak.__all__) == names | {"metrics"}
    assert polyak.__all__ == sorted(polyak.__all__, key=lambda name: (not name.isupper(), name))  # functions last
    assert all(value.__module__.split(".")[0] == "polyak" for value in PUBLIC.values())


@pytest.mark.parametrize("cls", PUBLIC.values(), ids=PUBLIC.keys())
def test_every_public_name_says_in_one_sentence_what_it_is(cls):
    first = inspect.cleandoc(cls.__doc__).splitlines()[0]
    assert first.endswith(".")
    assert first[0].isupper()
    assert len(first) <= 120


@pytest.mark.parametrize("cls", [*OPTIMIZERS, *SETS], ids=lambda cls: cls.__name__)
def test_every_argument_of_a_constructor_is_documented(cls):
    assert documented(cls.__doc__, "Args") == arguments(cls.__init__)


@pytest.mark.parametrize("cls", [*METHODS, *SETS], ids=lambda cls: cls.__name__)
def test_every_class_shows_an_example_that_uses_it(cls):
    example = inspect.cleandoc(cls.__doc__).partition("\nExample:\n")[2]
    assert f"polyak.{cls.__name__}(" in example
    assert ">>> " in example


@pytest.mark.parametrize("cls", METHODS, ids=lambda cls: cls.__name__)
def test_every_method_names_the_authors_the_title_and_the_place_of_its_paper(cls):
    reference = " ".join(inspect.cleandoc(cls.__doc__).partition("\nReference:\n")[2].split())
    first, *others = reference.split(", ")
    assert re.match(r"[A-Z]\. (?:[A-Z]\. )*[A-Z]\w+", first)
    assert any(re.match(r"[A-Z]", part) and len(re.findall(r"\w{4,}", part)) >= 4 for part in others)  # the title
    assert re.search(r"arXiv:\d{4}\.\d{5}|openreview\.net/", reference)
    assert re.search(r", (?:[A-Za-z]+ )?20\d\d[,.:]", reference)


@pytest.mark.parametrize("cls", METHODS, ids=lambda cls: cls.__name__)
def test_every_method_says_its_formula_its_source_and_its_differences(cls):
    text = inspect.cleandoc(cls.__doc__)
    assert "γ" in text
    assert re.search(r"\nDifferences from the (authors' code|paper):", text)
    assert re.search(r"\nReference:\n.*arXiv:\d{4}\.\d{5}", text, re.DOTALL)


@pytest.mark.parametrize("page", ["README.md", "CHANGELOG.md"])
@pytest.mark.parametrize("cls", METHODS, ids=lambda cls: cls.__name__)
def test_every_method_is_named_on_the_first_page_and_in_the_change_log(cls, page):
    assert re.search(rf"`{cls.__name__}[`(]", (ROOT / page).read_text(encoding="utf-8"))


def test_a_method_is_the_only_class_of_its_file():
    assert len({cls.__module__ for cls in METHODS}) == len(METHODS)


@pytest.mark.parametrize("cls", [polyak.LastStep, polyak.Line], ids=lambda cls: cls.__name__)
def test_every_field_of_a_result_is_documented(cls):
    assert documented(cls.__doc__, "Attributes") == set(cls._fields)


CALLS = [getattr(polyak.PolyakOptimizer, name) for name in ("step", "watch", "last_step", "add_param_group")]


@pytest.mark.parametrize("call", [*CALLS, polyak.metrics], ids=lambda call: call.__name__)
def test_every_argument_of_a_call_is_documented(call):
    assert documented(call.__doc__, "Args") == arguments(call)


@pytest.mark.parametrize("cls", OPTIMIZERS, ids=lambda cls: cls.__name__)
def test_every_public_call_has_a_docstring(cls):
    calls = {name: value for name, value in vars(cls).items() if inspect.isfunction(value) and name[0] != "_"}
    assert all(value.__doc__ for value in calls.values()), [n for n, v in calls.items() if not v.__doc__]


# How it is built


@pytest.mark.parametrize("cls", [*METHODS, *SETS], ids=lambda cls: cls.__name__)
def test_every_class_is_final_and_one_level_deep(cls):
    assert cls.__final__
    assert cls.__bases__ in ((polyak.PolyakOptimizer,), (polyak.Constraint,))


def test_the_step_is_written_once():
    assert polyak.PolyakOptimizer.step.__final__
    own = [cls for cls in METHODS if vars(cls).keys() & {"last_step", "watch", "add_param_group", "zero_grad"}]
    assert own == []


def test_most_functions_are_very_short():
    bodies = [lines for path in FILES for lines in bodies_of_functions(path)]
    assert statistics.median(bodies) < 8


# One version


def test_the_version_is_the_same_everywhere():
    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    citation = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    changelog = re.search(r"^## (\d\S*)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert {metadata["project"]["version"], citation[1], changelog[1]} == {polyak.__version__}


def test_the_library_depends_on_torch_alone():
    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert [re.split(r"[<>=~! ]", name)[0] for name in metadata["project"]["dependencies"]] == ["torch"]
