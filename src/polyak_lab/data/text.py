"""Text as sequences of characters: a file of the user, or Python's documentation."""

import importlib
import importlib.util
from pathlib import Path

import numpy as np
import torch

from polyak_lab.data.dataset import Dataset, Split
from polyak_lab.data.source import Contents, Source, read_file
from polyak_lab.errors import LabError

CONTEXT = 128
TEST_SHARE = 0.1
TOPICS = "pydoc_data.topics"  # the text of help("while") and the like


def parse(contents: Contents, place: Path, context: int = CONTEXT) -> Dataset:
    """Return sequences of `context` characters with the characters one place later as their targets.

    The last 10 % of the characters are the test text, the others the training text; each is cut
    into sequences that do not overlap, and what is left at its end is dropped. The vocabulary is
    the set of characters of the whole file.
    """
    (content,) = contents.values()
    return sequences("text", _decode(content, place), place, context)


def sequences(name: str, text: str, place: Path, context: int) -> Dataset:
    """Number the characters of a text by their code points and cut it."""
    points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    vocabulary, numbers = np.unique(points, return_inverse=True)
    test = int(TEST_SHARE * len(numbers))
    if test <= context:
        least = 10 * (context + 1)
        raise LabError(f"{place} has {len(text)} characters: a context of {context} needs {least} or more.")
    if len(vocabulary) < 2:
        raise LabError(f"{place} holds nothing but {text[0]!r}: there is nothing to predict.")
    codes = torch.from_numpy(numbers.astype(np.int64))
    return Dataset(name, _cut(codes[:-test], context), _cut(codes[-test:], context), len(vocabulary), "next_token")


def _cut(codes: torch.Tensor, context: int) -> Split:
    used = (len(codes) - 1) // context * context
    return Split(codes[:used].view(-1, context), codes[1 : used + 1].view(-1, context))


def _decode(content: bytes, place: Path) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise LabError(
            f"{place} is not UTF-8 text (byte {error.start} is 0x{content[error.start]:02x}): convert it, such as with "
            "iconv -f latin1 -t utf-8."
        ) from error


def _open(place: Path) -> Contents:
    if place.is_dir():
        raise LabError(f"{place} is a folder: data 'text' needs a text file as its root.")
    return {place.name: read_file(place)}


def parse_python_docs(contents: Contents, place: Path, context: int = CONTEXT) -> Dataset:
    """Return the distinct paragraphs of Python's language reference as text."""
    topics = importlib.import_module(TOPICS).topics
    paragraphs = dict.fromkeys(part for topic in topics.values() for part in topic.split("\n\n"))
    return sequences("python-docs", "\n\n".join(paragraphs), place, context)


def _find_topics(_: Path) -> Path | None:
    try:
        spec = importlib.util.find_spec(TOPICS)
    except ModuleNotFoundError:
        return None
    return None if spec is None or spec.origin is None else Path(spec.origin)


TEXT = Source(
    name="text",
    kind="characters of a UTF-8 file, for language models",
    how='your own file: data = { name = "text", root = "file.txt" }',
    find=lambda root: root if root.exists() else None,
    open=_open,
    parse=parse,
    context=CONTEXT,
    needs_root=True,
)
PYTHON_DOCS = Source(
    name="python-docs",
    kind="0.4 million characters of text, for language models",
    how="a part of Python (module pydoc_data)",
    find=_find_topics,
    open=_open,
    parse=parse_python_docs,
    context=CONTEXT,
)
