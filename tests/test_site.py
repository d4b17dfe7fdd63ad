"""The built documentation: no warning, no broken link, every option of every class (`make test-docs`)."""

import inspect
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

import polyak
import site_pages

pytestmark = pytest.mark.docs


class Page(HTMLParser):
    """The ids, the links and the loaded files of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids.add(found.get("id") or "")
        if tag == "a" and found.get("href"):
            self.links.append(found["href"] or "")
        if tag in ("script", "img", "link"):
            self.loaded += [found[key] or "" for key in ("src", "href") if found.get(key)]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site, as `make docs` builds it."""
    html = site_pages.build(tmp_path_factory.mktemp("site"))
    return {path.relative_to(html).as_posix(): Page(path) for path in html.rglob("*.html")}, html


def test_every_link_of_the_site_resolves(site):
    pages, html = site
    for name, page in pages.items():
        for link in (link for link in page.links if not re.match(r"https?:|mailto:", link)):
            path, _, anchor = link.partition("#")
            there = (html / name).parent / unquote(path) if path else html / name
            assert there.resolve().exists(), (name, link)
            if anchor and there.suffix == ".html":
                assert unquote(anchor) in pages[there.resolve().relative_to(html).as_posix()].ids, (name, link)


def test_no_page_loads_anything_from_another_site(site):
    pages, _ = site
    for name, page in pages.items():
        assert [url for url in page.loaded if "//" in url] == [], name


@pytest.mark.parametrize("name", polyak.__all__)
def test_the_page_of_a_name_shows_every_option(site, name):
    text = re.sub(r"<[^>]*>", "", (site[1] / "api" / f"{name}.html").read_text(encoding="utf-8"))
    thing = getattr(polyak, name)
    if not (inspect.isclass(thing) and issubclass(thing, dict)):
        for option in inspect.signature(thing).parameters:
            assert len(re.findall(rf"\b{option}\b", text)) >= 2, option  # in the signature and in its description


def test_figures_have_a_dark_version(site):
    text = (site[1] / "how-it-works.html").read_text(encoding="utf-8")
    assert text.count("only-light") == text.count("only-dark") == 4
