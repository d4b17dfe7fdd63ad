"""The blocks of the pages that need a framework run, too."""

from __future__ import annotations

import pytest

from test_docs import ROOT, run

pytestmark = [pytest.mark.frameworks, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize(("page", "snippets"), [("docs/loops.md", 12), ("README.md", 3)])
def test_every_snippet_of_every_loop_runs(page, snippets, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert run(ROOT / page, everything=True) >= snippets
