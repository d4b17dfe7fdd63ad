"""The blocks of the pages that need a framework run, too."""

from __future__ import annotations

import importlib
import re

import pytest

from test_docs import ROOT, run

pytestmark = [pytest.mark.frameworks, pytest.mark.filterwarnings("ignore")]


def test_every_snippet_of_every_loop_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert run(ROOT / "docs/loops.md", everything=True) >= 12


def test_the_readme_names_what_the_integrations_have():
    named = re.findall(r"(polyak\.integrations\.\w+)\.(\w+)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(named) == 4
    for module, name in named:
        assert callable(getattr(importlib.import_module(module), name))
