"""The structure of the runner: layers without circles, small folders, short modules and functions."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src"
LAYERS = {  # from the bottom to the top: a module imports only from its own layer and from those before it
    "polyak_lab": (
        *("errors", "files", "console", "progress", "config", "processes", "data", "models", "objectives"),
        *("optimizers", "recipes", "runs", "training", "report", "sweep", "cli", "__main__"),
    ),
}
MOST_MODULES = 11
OPEN_FOLDERS = ("data", "methods")  # one module for every data set and every paper
LONGEST_MODULE = 300
LONGEST_FUNCTION = 30
MODULES = {
    ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__"): path
    for package in LAYERS
    for path in sorted((SRC / package).rglob("*.py"))
}


def imports(name: str) -> Iterator[str]:
    """Yield the modules of both packages that a module imports anywhere in its text."""
    path = MODULES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*base, *filter(None, [node.module])])
            if source in MODULES:
                names = [f"{source}.{alias.name}" for alias in node.names]
                yield from (full if full in MODULES else source for full in names)


GRAPH = {name: {*imports(name)} - {name} for name in MODULES}


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Yield every function of a file with its number of lines, without decorators and docstring."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            if ast.get_docstring(node):
                length -= node.body[0].end_lineno - node.body[0].lineno + 1
            yield f"{path.relative_to(SRC)}:{node.name}", length


def layer(name: str) -> tuple[str, int]:
    """Return the package of a module, and the height of its layer; a package's own __init__ is above all layers."""
    package, _, rest = name.partition(".")
    return package, LAYERS[package].index(rest.partition(".")[0]) if rest else len(LAYERS[package])


def within(package: str) -> dict[str, set[str]]:
    """Return the imports of a package's modules from the package itself."""
    modules = [name for name in MODULES if layer(name)[0] == package]
    return {name: {imported for imported in GRAPH[name] if layer(imported)[0] == package} for name in modules}


@pytest.mark.parametrize("package", LAYERS)
def test_there_is_no_import_circle(package):
    try:
        TopologicalSorter(within(package)).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


@pytest.mark.parametrize("package", LAYERS)
def test_no_module_imports_from_a_layer_above_its_own(package):
    upward = [
        f"{name} imports {imported}"
        for name, found in within(package).items()
        for imported in found
        if layer(imported)[1] > layer(name)[1]
    ]
    assert upward == []


@pytest.mark.parametrize("package", LAYERS)
def test_every_module_belongs_to_a_layer(package):
    tops = {name.split(".")[1] for name in MODULES if name.startswith(f"{package}.")}
    assert tops == {*LAYERS[package]}


@pytest.mark.parametrize("package", LAYERS)
def test_folders_are_small(package):
    folders = {path.parent for path in MODULES.values() if package in path.relative_to(SRC).parts}
    counts = {str(folder.relative_to(SRC)): len([*folder.glob("*.py")]) - 1 for folder in folders}
    assert {
        name: count for name, count in counts.items() if count > MOST_MODULES and Path(name).name not in OPEN_FOLDERS
    } == {}


@pytest.mark.parametrize("package", LAYERS)
def test_modules_are_short(package):
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in MODULES.items()}
    assert {n: length for n, length in lengths.items() if length > LONGEST_MODULE and layer(n)[0] == package} == {}


@pytest.mark.parametrize("package", LAYERS)
def test_functions_are_short(package):
    found = [pair for name, path in MODULES.items() if layer(name)[0] == package for pair in functions(path)]
    assert {function: length for function, length in found if length > LONGEST_FUNCTION} == {}
