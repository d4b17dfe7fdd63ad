"""Models by name: `build("resnet20", (3, 32, 32), 10)`."""

from polyak_lab.models.catalogue import NAMES, build, resolve

__all__ = ["NAMES", "build", "resolve"]
