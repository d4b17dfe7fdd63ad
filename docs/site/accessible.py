"""A Sphinx extension: what the built pages lack for screen readers and for the keyboard.

Sphinx gives the captions of the navigation the role of a heading without a level, and a block of code or a table that
is wider than the window can be scrolled by the mouse alone.
"""

from pathlib import Path
from typing import Any

ADDED = {
    '<p class="caption" role="heading">': '<p class="caption" role="heading" aria-level="2">',
    "<pre>": '<pre tabindex="0">',
    '<div class="table-wrapper': '<div tabindex="0" class="table-wrapper',
}


def complete(app: Any, error: Exception | None) -> None:
    """Add the attributes to every page."""
    if error is not None or app.builder.format != "html":
        return
    for page in Path(app.outdir).rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        for tag, completed in ADDED.items():
            text = text.replace(tag, completed)
        page.write_text(text, encoding="utf-8")


def setup(app: Any) -> dict[str, bool]:
    """Register the last step of the build."""
    app.connect("build-finished", complete)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
