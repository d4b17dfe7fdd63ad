"""Assemble the sources of the site: `python docs/site/assemble.py FOLDER`.

They are docs/ without its scripts, the pages of the API, and every file above docs/ that a page links to (the
changelog, the results). Links between them are rewritten for their new places.
"""

import os
import re
import sys
from pathlib import Path

import api_pages

ROOT = Path(__file__).parents[2]
DOCS = Path("docs")
STARTS = ("CHANGELOG.md", "CONTRIBUTING.md", "results/README.md")
NOT_COPIED = re.compile(r"docs/(_build|figures/.*\.py$|site/(assemble|api_pages)\.py$)|__pycache__")
LINK = re.compile(r"(?P<text>!?\[(?:[^\[\]]|\[[^\]]*\])*\])\((?P<path>[^)#\s:]+)(?P<anchor>#[^)\s]*)?\)")
CODE = re.compile(r"```.*?^ *```|`[^`\n]*`", re.DOTALL | re.MULTILINE)
ORPHAN = "---\norphan: true\n---\n\n"


def place(path: Path) -> Path:
    """Return where a file of the repository is in the site."""
    if path == Path("README.md"):
        return Path("index.md")
    return path.relative_to(DOCS) if path.is_relative_to(DOCS) else path


def links(path: Path) -> list[Path]:
    """Return the files of the repository that a page links to."""
    text = CODE.sub("", (ROOT / path).read_text(encoding="utf-8"))
    return [target for link in LINK.finditer(text) if (target := _target(path, link["path"])) is not None]


def _target(page: Path, link: str) -> Path | None:
    target = Path(os.path.normpath(page.parent / link))
    return target if (ROOT / target).is_file() else None


def rewritten(page: Path) -> str:
    """Return the text of a page with links for its place in the site."""

    def moved(link: re.Match[str]) -> str:
        target = _target(page, link["path"])
        if target is None:
            return link[0]
        there = os.path.relpath(place(target), place(page).parent)
        return f"{link['text']}({there}{link['anchor'] or ''})"

    return LINK.sub(moved, (ROOT / page).read_text(encoding="utf-8"))


def everything() -> dict[Path, bytes]:
    """Return every file of the site's sources."""
    inner = [path.relative_to(ROOT) for path in (ROOT / DOCS).rglob("*") if path.is_file()]
    wanted = [path for path in inner if not NOT_COPIED.search(path.as_posix())] + [Path(start) for start in STARTS]
    files: dict[Path, bytes] = {}
    while wanted:
        path = wanted.pop()
        if place(path) in files or path == Path("README.md"):
            continue
        files[place(path)] = _content(path)
        if path.suffix == ".md":
            wanted += links(path)
    api = {Path("api", f"{name}.md"): text.encode() for name, text in api_pages.pages().items()}
    return files | api


def _content(path: Path) -> bytes:
    if path.suffix != ".md":
        return (ROOT / path).read_bytes()
    listed = path.is_relative_to(DOCS) or path.as_posix() in STARTS
    return (("" if listed else ORPHAN) + rewritten(path)).encode()


def write(out: Path) -> None:
    """Write the files that changed, and remove those that went."""
    files = everything()
    for old in [path for path in out.rglob("*") if path.is_file() and path.relative_to(out) not in files]:
        old.unlink()
    for path, content in files.items():
        target = out / path
        if not target.is_file() or target.read_bytes() != content:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
