"""The user's own code: objects by import path, "package.module:attribute", or by an installed package's short name.

A short name is an entry point of the group `polyak.models`, `polyak.data`, `polyak.objectives` or
`polyak.optimizers`; a resolved run holds the import path that it stands for. The current folder is
searched last, so that a package there need not be installed.
"""

import functools
import hashlib
import importlib
import importlib.metadata
import inspect
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal

from polyak_lab.config.run import Run
from polyak_lab.config.strict import check_known, shown
from polyak_lab.errors import LabError, RowError, typed_line

Kind = Literal["model", "data", "objective", "optimizer"]
GROUPS: Final[Mapping[Kind, str]] = {
    "model": "polyak.models",
    "data": "polyak.data",
    "objective": "polyak.objectives",
    "optimizer": "polyak.optimizers",
}
MOST_FILES = 1000
"""Of a package with more Python files, such as torch, only the named modules are compared."""
OURS = (str(Path(__file__).parent), "<frozen importlib", str(Path(importlib.__file__).parent))


def is_path(name: str | None) -> bool:
    """Tell whether a name is an import path."""
    return name is not None and ":" in name


def uses_own_code(run: Run) -> bool:
    """Tell whether a resolved run trains with anything that is imported by path."""
    return any(map(is_path, own_paths(run)))


def own_paths(run: Run) -> tuple[str | None, ...]:
    """Return the names in a run that may be import paths."""
    return run.data.name, run.model.name, run.objective.name, run.optimizer.name


def expand(name: str, kind: Kind, known: Iterable[str]) -> str:
    """Return the import path behind a short name; a known name and an import path stay as they are."""
    known = tuple(known)
    if name in known or is_path(name):
        return name
    points = importlib.metadata.entry_points(group=GROUPS[kind])
    check_known(name, {*known, *points.names}, kind)
    paths = sorted({f"{point.module}:{point.attr}" for point in points.select(name=name)})
    if len(paths) > 1:
        raise LabError(f"{kind} {name!r} is a name of several packages: write one of {', '.join(paths)}.")
    return paths[0]


def load(path: str, kind: Kind) -> Any:
    """Import what a path names.

    Raises:
        RowError: There is no such module or attribute, or importing it raises.
    """
    module_name, _, attributes = path.partition(":")
    parts = attributes.split(".")
    if not all(part.isidentifier() for part in (*module_name.split("."), *parts)):
        raise RowError(f"{kind} {shown(path)} is not an import path: write package.module:name.")
    found: Any = _import(module_name, f"{kind} {path!r}")
    for part in parts:
        if not hasattr(found, part):
            where = module_name if inspect.ismodule(found) else f"{module_name}:{attributes.partition('.' + part)[0]}"
            raise RowError(f"{kind} {path!r} does not exist: {where} has no {part!r}.")
        found = getattr(found, part)
    return found


def _import(name: str, what: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
    importlib.invalidate_caches()
    with own_code(what):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # it is imported by the module
            raise RowError(
                f"{what} does not exist: there is no module {error.name}; install its package, or start the command in "
                "the folder that holds it."
            ) from error


def version(path: str, pinned: str | None) -> str | None:
    """Return the version of a path's package, None if it has none; refuse another than `pinned`."""
    package = path.partition(":")[0].partition(".")[0]
    found = _version_of(package)
    if pinned not in (None, found):
        raise LabError(f"{path} has version {found or 'unknown'}, but the run asks for {pinned}.")
    return found


def _version_of(package: str) -> str | None:
    for distribution in (*_distributions().get(package, ()), package):
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    stated = getattr(sys.modules.get(package), "__version__", None)
    return stated if isinstance(stated, str) else None


@functools.cache
def _distributions() -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()


def sources(paths: Iterable[str | None]) -> dict[str, str]:
    """Return the SHA-256 of the source of every package that import paths name; of the large ones, of those modules."""
    packages: dict[str, set[str]] = {}
    for path in filter(is_path, paths):
        module = str(path).partition(":")[0]
        packages.setdefault(module.partition(".")[0], set()).add(module)
    return {package: _digest(package, modules) for package, modules in sorted(packages.items())}


def _digest(package: str, modules: Iterable[str]) -> str:
    roots = [Path(root) for root in getattr(sys.modules.get(package), "__path__", ())]
    files = [file for root in roots for file in islice(_python_files(root), MOST_FILES + 1)]
    if not files or len(files) > MOST_FILES:
        named = (getattr(sys.modules.get(module), "__file__", None) for module in sorted(modules))
        files = [Path(file) for file in named if file is not None]
    digest = hashlib.sha256()
    for file in files:
        with suppress(OSError):
            digest.update(f"{file.name}:{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def _python_files(folder: Path) -> Iterator[Path]:
    """Yield the Python files of a folder, and of the folders in it that hold any."""
    with suppress(OSError):
        entries = sorted(folder.iterdir())
        if own := [entry for entry in entries if entry.suffix == ".py"]:
            yield from own
            for entry in entries:
                if entry.is_dir() and not entry.is_symlink() and entry.suffix != ".py":
                    yield from _python_files(entry)


@contextmanager
def own_code(what: str) -> Iterator[None]:
    """Turn what the user's code raises into a RowError that shows its traceback.

    Raises:
        RowError: `what` names the code, such as "model 'package:build'".
    """
    try:
        yield
    except (LabError, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # also SystemExit, and exceptions that are not derived from Exception
        raise RowError(f"{what} raised {typed_line(error)}.", own_traceback(error)) from error


@contextmanager
def row_errors(path: str) -> Iterator[None]:
    """Turn an error about the user's own code into a RowError; those about built-in names pass."""
    try:
        yield
    except LabError as error:
        if not is_path(path) or isinstance(error, RowError):
            raise
        raise RowError(str(error)) from error


def own_traceback(error: BaseException) -> str:
    """Write a traceback without the frames of the runner and of the import system."""
    whole = traceback.TracebackException.from_exception(error)
    whole.__cause__ = whole.__context__ = None
    own = [frame for frame in whole.stack if not frame.filename.startswith(OURS)]
    whole.stack[:] = own
    return "".join(whole.format()).rstrip() if own or isinstance(error, SyntaxError) else ""


def parameters_of(function: Any) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a function or a class; without a signature, as some built-in ones, any keywords."""
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        return {"options": inspect.Parameter("options", inspect.Parameter.VAR_KEYWORD)}


def takes_any_keyword(parameters: Mapping[str, inspect.Parameter]) -> bool:
    """Return whether there is a **kwargs among parameters."""
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())


def check_options(function: Any, options: Mapping[str, Any], what: str) -> None:
    """Refuse options that are no keyword arguments of a function."""
    parameters = parameters_of(function)
    if takes_any_keyword(parameters):
        return
    for key in options:
        if key not in parameters:
            known = ", ".join(parameters) or "none"
            raise RowError(f"{what} takes no option {key!r}; it takes {known[:150]}.")
