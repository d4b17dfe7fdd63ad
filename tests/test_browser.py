"""The report and the documentation in Chromium (`make test-system`): they open, answer, fit and are accessible.

With POLYAK_SCREENSHOTS set to a folder, the pages are also stored there as pictures and as a PDF file.
"""

import importlib.util
import os
import shutil
from pathlib import Path

import pytest

import site_pages
from lab.report import large
from lab.runs import call

pytestmark = pytest.mark.system
LEVELS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
WINDOWS = {"desktop": (1280, 900), "tablet": (768, 1024), "phone": (390, 844), "narrow": (320, 640)}
SITE = ("index.html", "how-it-works.html", "runner.html")
OUT_OF_PLACE = """() => {
  const wrong = [], width = document.documentElement.scrollWidth;
  if (width > innerWidth) wrong.push(`the page is ${width} wide`);
  const texts = ["button", "h1", "h2", "p", "li", "summary", "footer"].map(tag => `main ${tag}`).join();
  for (const element of document.querySelectorAll(texts)) {
    if (element.scrollWidth > element.clientWidth + 1 && getComputedStyle(element).display !== "inline")
      wrong.push(`clipped: ${element.textContent.trim().slice(0, 60)}`);
  }
  return wrong;
}"""
MOVES = {"Home": 1, "ArrowRight": 2, "PageUp": 22, "ArrowLeft": 21, "End": 200, "ArrowUp": 200}


@pytest.fixture(scope="module")
def browser():
    """Debian's Chromium, driven by Playwright."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: make test-system installs it")
    found = shutil.which("chromium")
    if found is None:
        pytest.skip("needs Chromium: scripts/system-packages chromium")
    flags = ["--no-sandbox"] if os.geteuid() == 0 else []
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=found, args=flags)
        yield started
        started.close()


class Tab:
    """A page in a window of its own, with what it wrote to the console and requested."""

    def __init__(self, browser, path, window="desktop", **options):
        width, height = WINDOWS[window]
        self.context = browser.new_context(viewport={"width": width, "height": height}, **options)
        self.page = self.context.new_page()
        self.said, self.requests = [], []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())

    def draw_all(self):
        """Scroll through the page, which draws a figure when it comes near."""
        for chart in self.page.locator(".chart").all():
            chart.scroll_into_view_if_needed()
            chart.locator("canvas").wait_for()
        self.page.evaluate("scrollTo(0, 0)")

    def store(self, name):
        """Keep a picture, if somebody wants to look at it."""
        if folder := os.environ.get("POLYAK_SCREENSHOTS"):
            self.page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)

    def violations(self):
        """Return what axe-core finds against WCAG levels A and AA."""
        from axe_playwright_python.sync_playwright import Axe

        options = {"runOnly": {"type": "tag", "values": LEVELS}}
        found = Axe().run(self.page, options=options).response["violations"]
        return [f"{rule['id']}: {node['html'][:120]}" for rule in found for node in rule["nodes"]]


@pytest.fixture
def open_tab(browser):
    tabs = []

    def open_one(*arguments, **options):
        tabs.append(Tab(browser, *arguments, **options))
        return tabs[-1]

    yield open_one
    for tab in tabs:
        tab.context.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The page of twenty runs of 200 epochs, one of them damaged and one unfinished."""
    folder = tmp_path_factory.mktemp("report")
    large.write(folder / "runs")
    (folder / "runs" / "row-04" / "seed-0" / "summary.json").unlink()
    (folder / "runs" / "row-07" / "seed-0" / "metrics.jsonl").write_text("{\n")
    assert call("report", folder / "runs", "-o", folder / "report.html") == 0
    return folder / "report.html"


def test_the_report_opens_from_disk_in_no_time(report, open_tab, record_property):
    tab = open_tab(report)
    timing = "performance.getEntriesByType('navigation')[0].loadEventEnd"
    seconds = min(_reloaded(tab, timing) for _ in range(3)) / 1000
    record_property("seconds", seconds)
    print(f"report: {report.stat().st_size / 1e6:.2f} MB, opens in {seconds:.2f} s")
    assert 0 < seconds < 5
    assert tab.said == []
    assert {url for url in tab.requests if not url.startswith("data:")} == {report.as_uri()}


def _reloaded(tab, timing):
    tab.page.reload()
    return tab.page.evaluate(timing)


def test_pointing_at_a_figure_shows_the_values_of_that_epoch_in_all(report, open_tab):
    tab = open_tab(report)
    tab.draw_all()
    figure = tab.page.locator(".figure").first
    first = figure.locator(".legend .value").first
    last = first.text_content()
    assert figure.locator(".epoch").text_content() == "Epoch 200 of 200"
    over = figure.locator(".u-over")
    over.hover(position={"x": over.bounding_box()["width"] / 2, "y": 40})
    assert figure.locator(".epoch").text_content() in [f"Epoch {epoch} of 200" for epoch in range(99, 103)]
    assert float(first.text_content()) > 10 * float(last)
    assert len(set(tab.page.locator(".epoch").all_text_contents())) == 1


def test_the_arrow_keys_move_through_the_epochs(report, open_tab):
    tab = open_tab(report)
    chart = tab.page.locator(".chart").first
    chart.focus()
    for key, epoch in (
        ("Home", 1),
        ("ArrowRight", 2),
        ("PageUp", 22),
        ("ArrowLeft", 21),
        ("End", 200),
        ("ArrowRight", 200),
    ):
        tab.page.keyboard.press(key)
        assert chart.get_attribute("aria-valuenow") == str(epoch), key
    told = chart.get_attribute("aria-valuetext")
    assert told.startswith("epoch 200: ALI-G, momentum 0.9, ball 20, lr 1 ")
    assert told.count("lr") == 19  # the damaged run has no line


@pytest.mark.parametrize("way", ["mouse", "keyboard"])
def test_a_row_is_hidden_and_shown_in_all_figures(way, report, open_tab):
    tab = open_tab(report)
    tab.draw_all()
    canvas, others = tab.page.locator("canvas").first, ".legend li:nth-child(3) button"
    before = canvas.screenshot()
    for pressed in ("false", "true"):
        button = tab.page.locator(others).first
        button.focus()
        button.click() if way == "mouse" else tab.page.keyboard.press("Space")
        assert {each.get_attribute("aria-pressed") for each in tab.page.locator(others).all()} == {pressed}
        tab.page.wait_for_timeout(200)
        tab.page.mouse.move(0, 0)
        assert (canvas.screenshot() == before) == (pressed == "true")


def test_the_values_are_also_a_table(report, open_tab):
    tab = open_tab(report)
    details = tab.page.locator("details.values").nth(1)
    details.locator("summary").click()
    details.locator("table").wait_for()
    assert details.locator("tbody tr").count() == 200
    assert details.locator("thead th").count() == 20
    assert tab.violations() == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("window", ["desktop", "phone"])
def test_the_report_is_accessible(scheme, window, report, open_tab):
    tab = open_tab(report, window, color_scheme=scheme)
    tab.draw_all()
    tab.store(f"report-{window}-{scheme}")
    assert tab.violations() == []


@pytest.mark.parametrize("window", WINDOWS)
def test_the_report_fits_every_window(window, report, open_tab):
    tab = open_tab(report, window)
    tab.draw_all()
    assert tab.page.evaluate(OUT_OF_PLACE) == []


def test_a_window_that_changes_keeps_its_figures_whole(report, open_tab):
    tab = open_tab(report)
    tab.draw_all()
    tab.page.set_viewport_size({"width": 390, "height": 844})
    tab.page.wait_for_timeout(300)
    widths = tab.page.evaluate("[...document.querySelectorAll('canvas')].map(canvas => canvas.clientWidth)")
    assert len(widths) == 6
    assert max(widths) <= 390


def test_the_printed_report_is_light_and_complete(report, open_tab, tmp_path):
    tab = open_tab(report, color_scheme="dark")
    folder = Path(os.environ.get("POLYAK_SCREENSHOTS", tmp_path))
    tab.page.pdf(
        path=folder / "report.pdf", format="A4", margin=dict.fromkeys(("top", "bottom", "left", "right"), "15mm")
    )
    assert (folder / "report.pdf").read_bytes().startswith(b"%PDF")
    assert tab.page.locator("canvas").count() == 6  # also those that were never near the window
    tab.page.emulate_media(media="print")
    assert tab.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    tab.page.set_viewport_size({"width": 700, "height": 1000})
    tab.page.wait_for_timeout(300)
    tab.store("report-print")
    assert tab.page.evaluate(OUT_OF_PLACE) == []


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    if importlib.util.find_spec("sphinx") is None:
        pytest.skip("needs Sphinx: make test-system installs it")
    return site_pages.build(tmp_path_factory.mktemp("site"))


@pytest.mark.parametrize("name", SITE)
@pytest.mark.parametrize(("window", "scheme"), [("desktop", "light"), ("desktop", "dark"), ("phone", "light")])
def test_the_documentation_is_accessible_and_fits(name, window, scheme, site, open_tab):
    tab = open_tab(site / name, window, color_scheme=scheme)
    tab.page.wait_for_load_state("networkidle")
    tab.store(f"site-{name[:-5]}-{window}-{scheme}")
    assert [url for url in tab.requests if not url.startswith(("file:", "data:"))] == []
    assert tab.said == []
    assert tab.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert tab.violations() == []
