"""The pages lead somewhere, the site has all of them, and theory.md names the tests that there are."""

import re
import runpy
import sys
from pathlib import Path

import pytest

import polyak
from site_pages import broken, slug

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [page for page in sorted(DOCS.rglob("*.md")) if "_build" not in page.parts]
TOP = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "results/README.md")]
FIGURES = sorted(set((DOCS / "figures").glob("*.py")) - {DOCS / "figures" / "style.py"})


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.fixture
def site(monkeypatch):
    """The scripts that assemble the site."""
    monkeypatch.syspath_prepend(str(DOCS / "site"))
    yield runpy.run_path(str(DOCS / "site" / "assemble.py"))
    sys.modules.pop("api_pages", None)


@pytest.mark.parametrize("page", [*TOP, *PAGES], ids=named)
def test_every_link_leads_to_a_file_and_a_heading(page):
    assert broken(page) == []


def test_a_broken_link_and_a_wrong_anchor_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A `b`: c\n\n[x](nowhere.md) [y](#a-b-c) [z](page.md#d) `[no](link.md)`\n", encoding="utf-8")
    assert broken(page) == ["nowhere.md", "page.md#d"]
    assert slug("`lr` is not the same number everywhere") == "lr-is-not-the-same-number-everywhere"


def test_every_page_is_in_the_contents_of_the_site():
    text = (DOCS / "index.md").read_text(encoding="utf-8")
    trees = "\n".join(re.findall(r"```\{toctree\}\n(.*?)```", text, re.DOTALL))
    listed = set(re.findall(r"^(?!:)(?:.*<)?([\w/-]+)>?$", trees, re.MULTILINE))
    pages = {page.relative_to(DOCS).with_suffix("").as_posix() for page in PAGES} - {"index", "api/integrations"}
    wanted = pages | {"self", "api/index", "CHANGELOG", "CONTRIBUTING", "results/README"}
    assert wanted == listed, "name the page in a toctree of docs/index.md"


def test_the_site_has_a_page_for_every_public_name(site):
    files = {
        path.as_posix(): content.decode() for path, content in site["everything"]().items() if path.suffix == ".md"
    }
    for name in polyak.__all__:
        assert f":: polyak.{name}\n" in files[f"api/{name}.md"]
        assert f"[`{name}`]({name}.md)" in files["api/index.md"]
    assert "](results/README.md)" in files["reproduce.md"]
    assert "](../cost.md)" in files["results/README.md"]


def test_the_site_has_a_part_for_every_public_name_of_the_integrations():
    text = (DOCS / "api" / "integrations.md").read_text(encoding="utf-8")
    for path in (ROOT / "src" / "polyak" / "integrations").glob("[a-z]*.py"):
        public = re.findall(r"^(?:class|def) ([A-Za-z]\w*)", path.read_text(encoding="utf-8"), re.MULTILINE)
        assert public
        for name in public:
            assert f":: polyak.integrations.{path.stem}.{name}\n" in text


def test_the_theory_names_every_theorem_and_no_other_test():
    named_there = set(re.findall(r"`(test_\w+)`", (DOCS / "theory.md").read_text(encoding="utf-8")))
    tests = {
        name: set(re.findall(r"^def (test_\w+)", (ROOT / "tests" / name).read_text(encoding="utf-8"), re.MULTILINE))
        for name in (
            *("test_theorems.py", "test_theorems_family.py", "test_limits.py"),
            *("test_identities.py", "test_papers.py"),
        )
    }
    assert set().union(*(found for name, found in tests.items() if name != "test_papers.py")) <= named_there
    assert named_there <= set().union(*tests.values())


@pytest.mark.parametrize("script", FIGURES, ids=named)
def test_a_figure_is_shown_on_a_page_in_light_and_dark(script):
    shown = "".join(page.read_text(encoding="utf-8") for page in [ROOT / "README.md", *PAGES])
    suffix = ".png" if script.stem == "accuracy_against_lr" else ".svg"
    assert f"figures/{script.stem}{suffix})" in shown
    assert script.with_suffix(suffix).exists()
    assert suffix == ".png" or script.with_stem(f"{script.stem}-dark").with_suffix(".svg").exists()


@pytest.mark.parametrize("name", ["geometry", "lr_sensitivity", "lower_bound"])
def test_a_figure_is_what_its_script_draws(name, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS / "figures"))
    script = runpy.run_path(str(DOCS / "figures" / f"{name}.py"))
    sys.modules.pop("style").save(script["draw"], tmp_path / f"{name}.svg")
    for stored in (f"{name}.svg", f"{name}-dark.svg"):
        drawn = (tmp_path / stored).read_text(encoding="utf-8")
        assert comments(drawn) == comments((DOCS / "figures" / stored).read_text(encoding="utf-8"))


def comments(svg: str) -> list[str]:
    """Return the texts of a picture, which matplotlib leaves as comments beside their outlines."""
    return re.findall(r"<!-- (.*?) -->", svg)
