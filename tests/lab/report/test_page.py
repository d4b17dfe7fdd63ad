"""The page of a report: complete, small, and without a request."""

import fcntl
import json
import os
import re
from html.parser import HTMLParser
from importlib.resources import files

import pytest

from lab.report import large
from lab.report.test_tables import TABLE, finish, store
from lab.runs import call
from polyak_lab.config.run import content_hash
from polyak_lab.report import curves, run_list, table
from polyak_lab.report import page as report
from polyak_lab.runs import stored


class Page(HTMLParser):
    """Collects the text, the tags and the attributes of a page."""

    def __init__(self, path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.text, self.tags, self.attributes = [], [], []
        self.feed(self.source)
        self.data = json.loads(re.search(r'id="data">(.*?)</script>', self.source)[1])

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text.append(data.strip())

    def charts(self):
        return {chart["title"]: chart for chart in self.data["charts"]}


@pytest.fixture
def runs(tmp_path):
    for row, (optimizer, paper, accuracies, capped) in TABLE.items():
        for seed, accuracy in enumerate(accuracies):
            store(tmp_path / "runs" / optimizer / f"seed-{seed}", row, optimizer, paper, seed, accuracy, capped)
    return tmp_path / "runs"


@pytest.fixture
def page(runs, tmp_path):
    report.write(tmp_path / "report.html", table.groups(stored.find_runs([runs])), "Table <1>", "A note & more")
    return Page(tmp_path / "report.html")


def written(tmp_path, *paths):
    assert call("report", *paths, "-o", tmp_path / "report.html") == 0
    return Page(tmp_path / "report.html")


def test_the_page_shows_the_table_and_the_curves(page):
    assert {"Table <1>", "A note & more", "ALI-G", "SGD <b>& cosine", "93.00 ± 3.61"} <= set(page.text)
    assert [row["name"] for row in page.data["rows"]] == ["ALI-G", "SGD <b>& cosine"]
    titles = ["Training loss", "Test accuracy, %", "Step size", "Capped steps, %"]
    assert [*page.charts()] == titles
    accuracy, _ = page.charts()["Test accuracy, %"]["rows"]
    assert accuracy == {"mean": [93.0] * 3, "low": [90.0] * 3, "high": [97.0] * 3}
    assert page.charts()["Training loss"]["rows"][0]["mean"] == pytest.approx([0.1, 0.01, 0.001])
    assert page.charts()["Step size"]["lines"] == [{"label": "cap 0.1", "value": 0.1, "rows": [0]}]


def test_a_name_cannot_leave_its_place_in_the_page(tmp_path):
    name = "</script><script>alert(1)</script>"
    store(tmp_path / "a", name, "alig", None, 0, 0.9, 0.1)
    page = written(tmp_path, tmp_path / "a")
    assert name not in page.source
    assert page.data["rows"][0]["name"] == name
    assert page.tags.count("script") == 3


def test_the_page_requests_nothing(page):
    links = [value for name, value in page.attributes if name in ("href", "src", "action", "srcset")]
    assert links
    assert all(link == "data:," or link.endswith("/config.json") for link in links)
    assert not re.search(r"https?://|@import|url\(", page.source)
    assert not {"img", "iframe", "form"} & set(page.tags)
    assert "default-src 'none'" in page.source


def test_every_run_links_its_configuration(page, tmp_path):
    links = [value for name, value in page.attributes if name == "href" and value.endswith("config.json")]
    assert len(links) == 5
    assert all((tmp_path / link).is_file() for link in links)


def test_ids_are_unique(page):
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_a_large_report_stays_small(tmp_path):
    large.write(tmp_path)
    page = written(tmp_path, tmp_path)
    assert len(page.charts()) == 6
    assert all(len(row["mean"]) == 200 for chart in page.data["charts"] for row in chart["rows"])
    assert len(page.data["rows"]) == 20
    assert len(page.source.encode()) < 1_500_000


def test_what_is_missing_is_named_in_its_place(runs, tmp_path, capsys):
    store(runs / "sgd" / "seed-2", "SGD <b>& cosine", "sgd", None, 2, 0.1, None, finished=False)
    store(runs / "sgd" / "seed-3", "SGD <b>& cosine", "sgd", None, 3, 0.1, None, finished=False)
    (runs / "sgd" / "seed-3" / "metrics.jsonl").write_text("")
    metrics = runs / "alig" / "seed-1" / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"epoch": 2', '"epoch": 7'))
    (runs / "alig" / "seed-2" / "config.json").write_text("{")
    (tmp_path / "nothing").mkdir()
    page = written(tmp_path, runs, tmp_path / "nothing")
    states = dict(re.findall(r'<th scope="row">(\S+)</th>.*?state">(.*?)</td>', page.source, re.DOTALL))
    seeds = dict(
        re.findall(r'<th scope="row">(\S+)</th>.*?<td>(\d*–?)</td><td class="long state', page.source, re.DOTALL)
    )
    assert [seeds[f"sgd/seed-{seed}"] for seed in (0, 2, 3)] == ["0", "2", "3"]
    assert states["sgd/seed-0"] == "finished, 3 epochs"
    assert states["sgd/seed-2"] == "unfinished: 3 epochs"
    assert states["sgd/seed-3"] == "empty: no epoch is finished yet"
    assert "metrics.jsonl is damaged (line 2 belongs to another epoch)" in states["alig/seed-1"]
    assert "config.json is damaged" in states["alig/seed-2"]
    assert [*states] == sorted(states)
    assert any(text.startswith(f"No runs in {tmp_path / 'nothing'}") for text in page.text)
    assert "4 of 7 runs are unfinished, empty or damaged; see the list of runs." in page.text
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_rows_of_several_recipes_are_named(tmp_path):
    for name, network in (("t", "mlp"), ("u", "resnet8")):
        store(tmp_path / name, f"ALI-G {name}", "alig", None, 0, 0.9, 0.1, options={"lr": 0.5})
        config = json.loads((tmp_path / name / "config.json").read_text())
        config["run"]["model"], config["label"]["table"] = {"name": network}, name
        config["hash"] = content_hash(config["run"])
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        finish(tmp_path / name)
    page = written(tmp_path, tmp_path)
    assert "The rows belong to different recipes (t, u); see how their configurations differ." in page.text
    assert "The networks differ." in page.text
    assert {"model.name", "resnet8", "optimizer.options.lr", "0.5"} <= set(page.text)


def test_times_and_speeds_are_those_of_the_runs(runs, tmp_path):
    for folder in sorted((runs / "alig").iterdir()):
        times = [{"seconds": epoch, "images_per_second": 3000.0 / epoch} for epoch in (1.0, 2.0, 3.0)]
        lines = [json.dumps({"epoch": i, "evaluation_seconds": 1.0, **time}) + "\n" for i, time in enumerate(times, 1)]
        (folder / "timings.jsonl").write_text("".join(lines))
        finish(folder)
    page = written(tmp_path, runs)
    assert page.text.count("9.0 s") == page.text.count("1,500") == 4  # in its row, and for each of three runs


@pytest.mark.parametrize(
    ("lr", "capped", "levels"),
    [(0.3, 0.5, [0.3]), (0.3, 0.0, [0.3]), (0.3, None, []), ("inf", 0.0, []), (0.0, 1.0, []), ("nan", 0.0, [])],
)
def test_the_cap_of_a_method_that_has_one_is_drawn(lr, capped, levels, tmp_path):
    store(tmp_path / "runs", "a", "alig", None, 0, 0.9, capped, lr=lr)
    page = written(tmp_path, tmp_path / "runs")
    assert [line["value"] for line in page.charts()["Step size"]["lines"]] == levels


@pytest.mark.parametrize("curve", curves.CURVES, ids=lambda curve: curve.key)
def test_the_axis_of_a_curve_is_that_of_its_caption(curve, tmp_path):
    numbers = {"accuracy": 0.9, "capped": 0.5, curve.key: 0.5}
    if curve.key == "test_loss":
        numbers["test_accuracy"] = None  # beside which the loss is not drawn
    store(tmp_path / "run", "a", "alig", None, 0, **numbers)
    chart = written(tmp_path, tmp_path / "run").charts()[curve.title]
    assert chart["rows"][0].keys() == {"mean"}  # one seed has no band
    assert chart["log"] == ("logarithmic axis" in chart["caption"])
    assert chart["trimmed"] == ("leaves out the start" in chart["caption"])
    assert ("%" in curve.title) == (curve.factor == 100.0)


def test_a_row_whose_colour_another_has_is_dashed(tmp_path):
    colours = len(curves.PALETTE)
    for index in range(2 * colours + 1):
        store(tmp_path / "runs" / f"{index:02}", f"row {index:02}", "alig", None, 0, 0.9, 0.5)
    rows = written(tmp_path, tmp_path / "runs").data["rows"]
    assert [row["colour"] for row in rows] == [*curves.PALETTE, *curves.PALETTE, curves.PALETTE[0]]
    assert [row["dashed"] for row in rows] == [False] * colours + [True] * colours + [False]


@pytest.mark.parametrize(("key", "radius"), [("l2_ball", 20.0), ("l2_ball_relative", 1.5)])
def test_the_radius_of_a_ball_is_drawn(key, radius, tmp_path):
    recorded = {"ball_radius": 12.5} if key == "l2_ball_relative" else {}
    store(tmp_path / "a", "ALI-G", "alig", None, 0, 0.9, 0.1, weight_norm=12.4, **recorded)
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    config["run"]["optimizer"][key] = radius
    config["hash"] = content_hash(config["run"])
    (tmp_path / "a" / "config.json").write_text(json.dumps(config))
    finish(tmp_path / "a")
    (line,) = written(tmp_path, tmp_path / "a").charts()["Weight norm"]["lines"]
    assert line["value"] == recorded.get("ball_radius", radius)


def test_the_version_and_the_licence_of_uplot_are_stated(page):
    folder = files("polyak_lab.report") / "uplot"
    assert (
        (folder / "uPlot.iife.min.js")
        .read_text()
        .startswith(f"/*! https://github.com/leeoniya/uPlot (v{report.UPLOT})")
    )
    assert f"uPlot {report.UPLOT} by" in (folder / "README.md").read_text()
    assert (folder / "LICENSE").read_text().strip() in page.source


@pytest.mark.parametrize("place", ["nowhere", "file"])
def test_a_folder_that_is_none_is_one_sentence(place, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert call("report", tmp_path / place, "-o", tmp_path / "report.html") == 1
    assert re.fullmatch(r"polyak: [^\n]+\.\n", capsys.readouterr().err)
    assert not (tmp_path / "report.html").exists()


def test_a_page_on_standard_output_is_alone_there(runs, capfd):
    assert call("report", runs, "-o", "/dev/stdout") == 0
    printed = capfd.readouterr().out
    assert printed.startswith("<!DOCTYPE html>")
    assert printed.endswith("</html>\n")


@pytest.mark.parametrize("name", ["checkpoint.pt", "metrics.jsonl", "config.json", "a.toml", "none", "link.html"])
@pytest.mark.parametrize("verb", [("report", "--out"), ("table", "--report")])
def test_a_page_replaces_no_file_of_another_kind(verb, name, runs, tmp_path, capsys):
    file = tmp_path / name
    file.with_suffix(".pt").write_text("precious")
    if name.endswith(".html"):
        file.symlink_to(file.with_suffix(".pt"))
    else:
        file.write_text("precious")
    assert call(verb[0], runs, verb[1], file) == 1
    printed = capsys.readouterr()
    assert printed.out == ""  # before any run is read
    assert re.fullmatch(rf"polyak: {verb[1]} is [^\n]+, but must be a file that ends in .html or .htm\.\n", printed.err)
    assert file.read_text() == "precious"


def test_the_command_counts_rows_and_runs(runs, tmp_path, capsys):
    page = tmp_path / "page.html"
    for folder, found in (
        (runs, "2 rows, 5 runs"),
        (runs / "sgd", "1 row, 2 runs"),
        (runs / "sgd/seed-0", "1 row, 1 run"),
    ):
        assert call("report", folder, "-o", page) == 0
        assert capsys.readouterr().out == f"{page}: {found}\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "–"), (0.04, "0.0 s"), (99.9, "99.9 s"), (100, "1.7 min"), (5994, "99.9 min"), (6000, "1.7 h")],
)
def test_a_time_is_written_in_the_unit_that_suits_it(seconds, text):
    assert run_list.write_time(seconds) == text


@pytest.mark.parametrize("name", ["page.html", "page.HTM"])
def test_a_page_is_written_again(name, runs, tmp_path):
    (tmp_path / name).write_text("a page of before")
    assert call("report", runs, "--out", tmp_path / name) == 0
    assert (tmp_path / name).read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_a_page_goes_into_a_pipe(runs, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 1 << 20)  # the page fits
    assert call("report", runs, "--out", tmp_path / "pipe") == 0
    assert os.read(reader, 9) == b"<!DOCTYPE"
    os.close(reader)
