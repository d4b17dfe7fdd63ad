"""The table of data sets and the four things one does with them."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from polyak_lab import imports
from polyak_lab.config.run import Data
from polyak_lab.config.strict import check_known
from polyak_lab.data import imported
from polyak_lab.data.cifar import CIFAR10, CIFAR100
from polyak_lab.data.dataset import Dataset
from polyak_lab.data.digits import DIGITS
from polyak_lab.data.fetch import OnProgress, download
from polyak_lab.data.folder import FOLDER
from polyak_lab.data.idx import FASHION_MNIST, MNIST
from polyak_lab.data.libsvm import MUSHROOMS
from polyak_lab.data.places import default_root
from polyak_lab.data.source import Source
from polyak_lab.data.streamed import Streamed
from polyak_lab.data.synthetic import MATRIX_FACTORISATION, SEPARABLE_LOGISTIC
from polyak_lab.data.text import PYTHON_DOCS, TEXT
from polyak_lab.errors import LabError, RowError
from polyak_lab.files import explain_os_errors

SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        DIGITS,
        MNIST,
        FASHION_MNIST,
        CIFAR10,
        CIFAR100,
        MUSHROOMS,
        SEPARABLE_LOGISTIC,
        MATRIX_FACTORISATION,
        TEXT,
        PYTHON_DOCS,
        FOLDER,
    )
}
NAMES = tuple(SOURCES)


class Row(NamedTuple):
    """One line of the list of data sets."""

    name: str
    kind: str
    where: str
    how: str


def load(name: str, root: Path | None = None, *, context: int | None = None) -> Dataset:
    """Read a data set into tensors.

    Args:
        name: One of `NAMES`.
        root: Folder in which the data sets lie, `default_root()` when None; the file itself for
            "text".
        context: Characters in a sequence of text; the data set's own default when None.

    Raises:
        LabError: The name is unknown, or the data is missing, damaged or not what it says.
    """
    source = _source(name)
    options = {} if context is None else {"context": context}
    return source.load(_place(source, root), **options)


def load_chosen(chosen: Data) -> Dataset | Streamed:
    """Read the data of a resolved configuration: a data set of this package, or the user's own."""
    if imports.is_path(chosen.name):
        return imported.load(chosen)
    return load(chosen.name, None if chosen.root is None else Path(chosen.root), context=chosen.context)


def resolve(chosen: Data) -> Data:
    """Check the options of single data sets; fill in the context and checksum of a text, or the user's version."""
    path = imports.expand(chosen.name, "data", NAMES)
    if imports.is_path(path):
        return _resolve_own(replace(chosen, name=path))
    for option in ("outputs", "workers", "options", "version"):
        if getattr(chosen, option):
            raise LabError(f"data {chosen.name!r} takes no {option}: only your own data does, by import path.")
    source = SOURCES[chosen.name]
    if chosen.root is None and source.needs_root:
        raise _without_root(source)
    if chosen.root is not None and not source.needs_root:
        others = ", ".join(repr(other.name) for other in SOURCES.values() if other.needs_root)
        raise LabError(f"data {chosen.name!r} takes no root, only {others}: set POLYAK_DATA to where data sets lie.")
    _refuse_text_options(source, chosen)
    if source.context is None and not source.needs_root:
        return chosen
    place = _place(source, None if chosen.root is None else Path(chosen.root))
    checksum = source.checksum(place)
    if chosen.sha256 not in (None, checksum):
        kind = "folder" if source.context is None else "file"
        raise LabError(f"{place} is not the {kind} of data.sha256: its checksum is {checksum}.")
    return replace(chosen, context=chosen.context or source.context, sha256=checksum)


def _resolve_own(chosen: Data) -> Data:
    for option in ("root", "context", "sha256"):
        if getattr(chosen, option) is not None:
            raise LabError(f"data {chosen.name!r} takes no {option}: write data.options = {{ {option} = ... }}.")
    imports.load(chosen.name, "data")
    return replace(chosen, version=imports.version(chosen.name, chosen.version))


def _refuse_text_options(source: Source, chosen: Data) -> None:
    if source.context is None and chosen.context is not None:
        raise LabError(f"data {chosen.name!r} takes no context: it is no text.")
    if source.context is None and not source.needs_root and chosen.sha256 is not None:
        raise LabError(f"data {chosen.name!r} takes no sha256: it is no text.")


def fetch(
    name: str,
    root: Path | None = None,
    on_progress: OnProgress = lambda done, total: None,
) -> Path:
    """Download a data set from its official address and check it, unless it is there already.

    Returns:
        The file or folder that holds it.
    """
    source = _source(name)
    if not source.downloads:
        raise LabError(f"Data set {name!r} needs no download: it is {source.how}.")
    try:
        return _readable_place(source, root)
    except LabError:
        for item in source.downloads:
            download(item, (root or default_root()) / name, on_progress)
        return _readable_place(source, root)


def check(name: str, root: Path | None = None) -> str:
    """Compare the files of a data set with the official ones; return a one-line report."""
    source = _source(name)
    place = _place(source, root)
    contents = source.open(place)
    data = source.parse(contents, place)
    shape = "×".join(map(str, data.shape))
    counts = f"{len(data.train.inputs):,} + {len(data.test.inputs):,}"
    where = f"in {place}" if source.downloads else source.how
    return f"{name}, {where}: {counts} samples of shape {shape}; {_verdict(source, source.differing(contents), data)}."


def describe(root: Path | None = None) -> list[Row]:
    """Return name, kind, place and origin of every data set."""
    return [Row(s.name, s.kind, _where(s, root), s.how) for s in SOURCES.values()]


def _source(name: str) -> Source:
    check_known(name, NAMES, "data set")
    return SOURCES[name]


def _place(source: Source, root: Path | None) -> Path:
    if root is None and source.needs_root:
        raise _without_root(source)
    if root is None:
        root = default_root() if source.downloads else Path()  # what is built in lies nowhere
    place = _found(source, root)
    if place is None and source.needs_root:
        raise RowError(f"There is no {root}: data {source.name!r} reads it, as root says.")
    if place is None:
        files = ", ".join(item.name for item in source.downloads)
        raise LabError(
            f"Data set {source.name!r} is not in {root}: get it with {source.how}, or put {files} into "
            f"{root / source.name}, or set POLYAK_DATA to another folder."
        )
    return place


def _found(source: Source, root: Path) -> Path | None:
    with explain_os_errors("read", root):
        return source.find(root)


def _without_root(source: Source) -> LabError:
    return LabError(f"data {source.name!r} needs root, the place of {source.how}.")


def _readable_place(source: Source, root: Path | None) -> Path:
    place = _place(source, root)
    source.load(place)
    return place


def _verdict(source: Source, differing: list[str], data: Dataset) -> str:
    if source.samples is not None:
        if len(data.train.targets) + len(data.test.targets) == source.samples:
            return "as many as the official file has, for which there is no checksum"
        return f"the official file has {source.samples:,}, so figures may differ from published ones"
    if not source.md5:
        return "there is no official checksum to compare with"
    if not differing:
        return "every checksum is the official one"
    return (
        f"checksums of {', '.join(differing)} differ from the official files, so figures may differ from published ones"
    )


def _where(source: Source, root: Path | None) -> str:
    if source.needs_root:
        return "named by root"
    if not source.downloads:
        return "built in"
    try:
        place = _found(source, root or default_root())
    except LabError as error:
        return str(error)
    return "not here" if place is None else str(place)
