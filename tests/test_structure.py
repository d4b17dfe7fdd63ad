"""The structure of both packages: layers without import circles, small folders, short modules and functions.

The lines of a function are those from its `def` to its end, without decorators and docstring.
"""

from __future__ import annotations

import ast
import re
import statistics
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src"
LAYERS = {  # from the bottom to the top: a module imports only from its own layer and from those before it
    "polyak": ("_import_torch", "_backend", "constraints", "_step", "methods", "_metrics", "integrations"),
    "polyak_lab": (
        *("errors", "files", "console", "progress", "config", "processes", "imports", "data", "models", "objectives"),
        *("optimizers", "schedules", "recipes", "runs", "trackers", "training", "report", "sweep", "cli", "__main__"),
    ),
}
MOST_MODULES = 11
OPEN_FOLDERS = ("data", "methods", "models")  # one module for every data set, paper and network
LONGEST_MODULE = 300
LONGEST_FUNCTION = 30
MEDIAN_METHOD = 40  # lines of code in a method's file, without docstrings
LONGEST_REPEAT = 5  # lines that two methods' files may share in a row, docstrings included
TYPED = {
    (f"polyak._step.{name}", "polyak._step.optimizer") for name in ("decision", "lines")
}  # circles that only a type checker follows
TORCH_FREE = (  # what `polyak table`, `polyak --help` and the nodes' configuration need loads no torch
    *("errors", "files", "console", "progress", "config", "report", "__main__", "recipes.recipe", "processes.torchrun"),
    *("runs.documents", "runs.packed", "runs.stored", "runs.strict_json", "runs.lock"),
    *("cli.app", "cli.inspect", "cli.pack", "cli.signals", "cli.verbs", "cli.watch"),
)
MODULES = {
    ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__"): path
    for package in LAYERS
    for path in sorted((SRC / package).rglob("*.py"))
}


def resolved(name: str, node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    """Yield the full names of what a module's statement imports: modules, and `package.name` of their content."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    package = name if MODULES[name].name == "__init__.py" else name.rpartition(".")[0]
    base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
    source = ".".join([*base, *filter(None, [node.module])])
    for alias in node.names:
        full = f"{source}.{alias.name}"
        yield full if full in MODULES else source


def is_for_types(node: ast.AST) -> bool:
    """Return whether a statement is `if TYPE_CHECKING:`, which does not run."""
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports(name: str, *, typed: bool = False) -> set[str]:
    """Return what a module imports anywhere in its text; `typed`: what it imports under `if TYPE_CHECKING` alone."""
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    hidden = {inner for node in ast.walk(tree) if is_for_types(node) for part in node.body for inner in ast.walk(part)}
    statements = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    return {full for node in statements if (node in hidden) == typed for full in resolved(name, node)}


GRAPH = {name: imports(name) & MODULES.keys() - {name} for name in MODULES}


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


def test_circles_for_types_are_listed():
    """An import under `if TYPE_CHECKING` may close a circle, which does no harm but is worth knowing."""
    typed = {(name, imported) for name in MODULES for imported in imports(name, typed=True) if imported in MODULES}
    assert {(name, imported) for name, imported in typed if name in reachable(imported)} == TYPED


def reachable(name: str) -> set[str]:
    """Return the modules that a module imports, directly or through others."""
    seen, waiting = set(), [name]
    while waiting:
        new = GRAPH[waiting.pop()] - seen
        seen |= new
        waiting += new
    return seen


def test_the_library_does_not_import_the_runner():
    both = {name: imports(name) | imports(name, typed=True) for name in MODULES if layer(name)[0] == "polyak"}
    assert {name: found for name, found in both.items() if any(i.startswith("polyak_lab") for i in found)} == {}


def test_modules_without_torch_stay_without():
    """Follow the imports at the top of modules, and of the packages around them, without those inside functions."""
    free = [name for name in MODULES if name.startswith(tuple(f"polyak_lab.{start}" for start in TORCH_FREE))]
    assert len(free) > len(TORCH_FREE)
    assert {name: path for name in free if (path := path_to_torch(name))} == {}


def path_to_torch(name: str) -> list[str]:
    """Return the chain of imports that leads from a module to torch; empty if none does."""
    waiting, seen = [[name]], {name}
    while waiting:
        chain = waiting.pop(0)
        for imported in at_import(chain[-1]) - seen:
            if imported.partition(".")[0] == "torch":
                return [*chain, imported]
            if imported in MODULES:
                seen.add(imported)
                waiting.append([*chain, imported])
    return []


def at_import(name: str) -> set[str]:
    """Return what the import of a module imports itself: its statements outside functions, and its packages."""
    waiting: list[ast.AST] = [ast.parse(MODULES[name].read_text(encoding="utf-8"))]
    found = {name.rpartition(".")[0]} - {""}
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            found |= {*resolved(name, node)}
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not is_for_types(node):
            waiting += ast.iter_child_nodes(node)
    return found


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
    large = {name: count for name, count in counts.items() if count > MOST_MODULES}
    assert {name: count for name, count in large.items() if Path(name).name not in OPEN_FOLDERS} == {}


@pytest.mark.parametrize("package", LAYERS)
def test_modules_are_short(package):
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in MODULES.items()}
    assert {n: length for n, length in lengths.items() if length > LONGEST_MODULE and layer(n)[0] == package} == {}


@pytest.mark.parametrize("package", LAYERS)
def test_functions_are_short(package):
    found = [pair for name, path in MODULES.items() if layer(name)[0] == package for pair in functions(path)]
    assert {function: length for function, length in found if length > LONGEST_FUNCTION} == {}


METHODS = [path for name, path in MODULES.items() if name.startswith("polyak.methods.")]


def lines_of_code(path: Path) -> int:
    """Count the lines of a file that are not blank, a comment or part of a docstring."""
    text = path.read_text(encoding="utf-8")
    count = sum(bool(line.strip()) and not line.lstrip().startswith("#") for line in text.splitlines())
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            lines = text.splitlines()[node.body[0].lineno - 1 : node.body[0].end_lineno]
            count -= sum(map(bool, map(str.strip, lines)))
    return count


def test_a_method_is_short():
    assert statistics.median(map(lines_of_code, METHODS)) <= MEDIAN_METHOD


def test_no_six_lines_are_repeated_between_methods():
    """Without blank lines, imports and lines of nothing but punctuation."""
    seen: dict[tuple[str, ...], Path] = {}
    repeated = []
    for path in METHODS:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        lines = [line for line in lines if re.search(r"\w", line) and not line.startswith(("import ", "from ", "#"))]
        for run in zip(*(lines[i:] for i in range(LONGEST_REPEAT + 1)), strict=False):
            if seen.setdefault(run, path) != path:
                repeated.append((seen[run].stem, path.stem, run[0]))
    assert repeated == []
