"""The user's package, on the path or installed."""

import pytest

from lab.own import package


@pytest.fixture
def acme(tmp_path, monkeypatch):
    """A folder that holds the user's package, from which the commands are started; it is not installed."""
    package.forget()
    folder = package.write(tmp_path / "project")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    (folder / "recipe.toml").write_text(package.RECIPE, encoding="utf-8")
    yield folder
    package.forget()


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The same as an installed package of version 1.2.0."""
    package.forget()
    folder = package.install(tmp_path / "site-packages")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.chdir(tmp_path)
    yield folder
    package.forget()
