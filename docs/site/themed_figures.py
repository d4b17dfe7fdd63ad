"""Show figures/NAME-dark.svg in place of figures/NAME.svg where a reader prefers dark pages."""

from pathlib import Path
from typing import Any

from docutils import nodes


def add_dark(app: Any, doctree: nodes.document) -> None:
    """Put the dark version of each figure behind the light one; the theme shows one of them."""
    folder = Path(app.env.doc2path(app.env.docname)).parent
    for image in list(doctree.findall(nodes.image)):
        light = Path(image["uri"])
        dark = light.with_stem(f"{light.stem}-dark")
        if not (folder / dark).exists():
            continue
        twin = image.deepcopy()
        twin["uri"] = str(dark)
        image["classes"].append("only-light")
        twin["classes"].append("only-dark")
        image.parent.insert(image.parent.index(image) + 1, twin)


def setup(app: Any) -> dict[str, bool]:
    """Run before Sphinx collects the images."""
    app.connect("doctree-read", add_dark, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
