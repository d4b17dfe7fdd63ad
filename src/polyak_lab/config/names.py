"""The names of the library's methods, read from its files: importing them would load torch."""

from importlib.util import find_spec
from pkgutil import iter_modules


def method_name(module: str) -> str:
    """Return the name of the method in a module: that of its file, with hyphens."""
    return module.rpartition(".")[2].replace("_", "-")


def method_names() -> list[str]:
    """Return the names of all methods."""
    package = find_spec("polyak")
    folders = (package.submodule_search_locations if package else None) or []
    return sorted(method_name(module.name) for module in iter_modules([f"{folder}/methods" for folder in folders]))
