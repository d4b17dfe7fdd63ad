"""A search on a real Ray cluster of two nodes on this machine: nodes, workers and the driver are killed."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
import torch

from lab.runs import call
from lab.sweep.ray_nodes import Nodes, free_port
from observe import SMALL_BALLS
from polyak_lab.runs import documents, stored

pytestmark = [pytest.mark.sweep, pytest.mark.filterwarnings(SMALL_BALLS)]

RECIPE = """
[defaults]
data = {{ name = "{data}", holdout = 300 }}
model = "mlp"
training = {{ epochs = {epochs}, batch_size = 16, device = "{device}", threads = {threads} }}
[[row]]
name = "ALI-G"
optimizer = {{ name = "alig" }}
[sweep]
row = "ALI-G"
trials = {trials}
axes = {{ lr = {{ low = 1e-3, high = 10.0, log = true }}, momentum = [0.0, 0.9], l2_ball = [5.0, 50.0] }}
"""


@pytest.fixture(scope="module")
def nodes():
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    started = Nodes()
    yield started
    started.close()


@pytest.fixture
def second(nodes):
    node = nodes.join("two")
    yield node
    node.kill()


@pytest.fixture
def search(tmp_path):
    def write(trials, epochs=12, data="digits", device="cpu", threads=1):
        path = tmp_path / "search.toml"
        path.write_text(RECIPE.format(trials=trials, epochs=epochs, data=data, device=device, threads=threads))
        return path

    return write


class Driver:
    """`polyak sweep --ray` in a process of its own."""

    def __init__(self, recipe, out, nodes):
        command = [sys.executable, "-u", "-m", "polyak_lab", "sweep", recipe, "--out", out, "--ray", nodes.address]
        environment = {**os.environ, "PYTHONWARNINGS": "default"}
        self.process = subprocess.Popen(
            [str(word) for word in command],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines = []

    def read_until(self, pattern):
        for line in self.process.stdout:
            self.lines.append(line)
            if re.search(pattern, line):
                return
        pytest.fail("".join(self.lines) + self.process.stderr.read())

    def finish(self):
        """Wait for the end; returns the exit code."""
        rest, self.errors = self.process.communicate(timeout=240)
        self.lines += rest.splitlines(keepends=True)
        return self.process.returncode

    @property
    def said(self):
        return "".join(self.lines)


def until(condition):
    limit = time.monotonic() + 60
    while not (found := condition()):
        assert time.monotonic() < limit
        time.sleep(0.05)
    return found


def under_way(out):
    """The trials that have done an epoch and are not finished."""
    begun = {path.parent for path in out.glob("trials/*/metrics.jsonl")}
    return begun - {path.parent for path in out.glob("trials/*/summary.json")}


def study(out):
    import optuna

    return optuna.load_study(study_name="sweep", storage=f"sqlite:///{out / 'study.db'}")


def states(out):
    return Counter(trial.state.name for trial in study(out).trials)


def result(out):
    return json.loads((out / "sweep.json").read_text())["result"]


def check_each_trial_counts_once(out, trials, epochs):
    counted = [trial for trial in study(out).trials if trial.state.name in ("COMPLETE", "PRUNED")]
    assert len(counted) == trials == result(out)["trials"]
    folders = {trial.user_attrs["folder"]: trial for trial in counted}
    assert len(folders) == trials
    runs = {run.path.name: run for run in stored.find_runs([out / "trials"])}
    assert runs.keys() == folders.keys()
    for name, trial in folders.items():
        records = runs[name].records
        assert [record["epoch"] for record in records] == [*range(1, len(records) + 1)]
        assert len(records) == epochs or trial.state.name == "PRUNED"
        assert trial.value == records[-1]["validation_accuracy"]
    assert result(out)["epochs"] == sum(len(run.records) for run in runs.values())


def test_a_node_is_killed_and_no_trial_is_lost_or_counted_twice(nodes, second, search, tmp_path):
    out = tmp_path / "out"
    driver = Driver(search(trials=12), out, nodes)
    driver.read_until(r"trial \d+: .*, on two \(")
    until(lambda: second.workers() and len(under_way(out)) >= 2)
    assert second.kill() == 1
    assert driver.finish() == 0, driver.errors
    assert states(out).keys() <= {"COMPLETE", "PRUNED"}
    check_each_trial_counts_once(out, trials=12, epochs=12)
    (again,) = re.findall(r"trial (\d+): .*: (?:the node was lost|its worker died), on two .*; submitted", driver.said)
    finished = re.findall(r"trial (\d+): .*, on (\w+) \(\w+\)\n", driver.said)
    assert sorted(int(number) for number, _ in finished) == [*range(12)]
    assert dict(finished)[again] == "one"
    folder = out / "trials" / study(out).trials[int(again)].user_attrs["folder"]
    assert len(documents.read_object(folder / "environment.json")["starts"]) == 2  # it resumed from its checkpoint
    assert "Warning" not in driver.errors


def test_a_driver_that_was_stopped_or_killed_resumes(nodes, search, tmp_path):
    out, recipe = tmp_path / "out", search(trials=5, epochs=30)
    driver = Driver(recipe, out, nodes)
    driver.read_until("trial 0: .*, on one")
    for sent, status in ((signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGINT, 130)):
        until(lambda: under_way(out))
        driver.process.send_signal(sent)
        driver.process.send_signal(signal.SIGTERM)
        assert driver.finish() == status
        assert driver.errors == "polyak: stopped; run the same command again to resume.\n"
        driver = Driver(recipe, out, nodes)
        driver.read_until("4 of 5 trials left")
    driver.read_until("trial .*, on one")
    driver.process.kill()
    driver.finish()
    driver = Driver(recipe, out, nodes)
    driver.read_until("3 of 5 trials left")
    assert driver.finish() == 0, driver.errors
    check_each_trial_counts_once(out, trials=5, epochs=30)


def test_a_trial_whose_worker_keeps_dying_is_given_up(nodes, search, tmp_path):
    driver = Driver(search(trials=2, epochs=200), tmp_path / "out", nodes)
    while driver.process.poll() is None:
        for pid in nodes.all[0].workers():
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.2)
    assert driver.finish() == 1
    assert len(re.findall(r"trial 0: .*: its worker died(?:, on one \(\w+\))?; submitted again", driver.said)) == 4
    assert "polyak: Trial 0 (lr" in driver.errors
    assert "its worker died, for the 5th time" in driver.errors
    assert "Traceback" not in driver.errors
    assert states(tmp_path / "out") == {"FAIL": 1}


def test_a_trial_that_falls_behind_is_stopped_on_its_node(nodes, search, tmp_path):
    import optuna

    out = tmp_path / "out"
    out.mkdir()
    queue = optuna.create_study(storage=f"sqlite:///{out / 'study.db'}", study_name="sweep", direction="maximize")
    for lr in (0.1, 0.11, 0.12, 0.13, 0.14, 9.0):
        queue.enqueue_trial({"lr": lr, "momentum": 0.9 if lr > 1 else 0.0, "l2_ball": 50.0 if lr < 1 else 5.0})
    assert call("sweep", search(trials=5, epochs=3), "--out", out) == 0
    driver = Driver(search(trials=6, epochs=3), out, nodes)
    assert driver.finish() == 0, driver.errors
    assert states(out) == {"COMPLETE": 5, "PRUNED": 1}
    assert "stopped after epoch 1, on one" in driver.said
    check_each_trial_counts_once(out, trials=6, epochs=3)


def test_trials_of_the_same_values_are_one_run(nodes, search, tmp_path):
    recipe, out = search(trials=3, epochs=2), tmp_path / "out"
    recipe.write_text(re.sub("axes = .*", "axes = { momentum = [0.9] }", recipe.read_text()))
    driver = Driver(recipe, out, nodes)
    assert driver.finish() == 0, driver.errors
    assert len(re.findall(r", on one", driver.said)) == 1
    assert len(re.findall(r", done before", driver.said)) == 2
    assert (result(out)["trials"], result(out)["epochs"], states(out)) == (3, 2, {"COMPLETE": 3})


@pytest.mark.skipif(torch.cuda.is_available(), reason="the node has what this test needs it to lack")
@pytest.mark.parametrize(
    ("change", "said", "left"),
    [
        ({"data": "cifar100"}, r"Trial 0 \(.*\) failed, on one \(\w+\): .*cifar100.*", {"FAIL": 1}),
        ({"device": "auto"}, r"Trial 0 .*, on one \(\w+\): The device 'cuda' cannot be used.*", {"FAIL": 1}),
        ({"threads": 64}, "No node of the Ray cluster at .* has 64 CPU, which a trial needs.", {}),
    ],
)
def test_a_trial_that_cannot_run_is_said_in_a_sentence(change, said, left, nodes, search, tmp_path):
    driver = Driver(search(2, **change), tmp_path / "out", nodes)
    assert driver.finish() == 1
    assert re.fullmatch(f"polyak: {said}", driver.errors.strip())
    assert states(tmp_path / "out") == left


def test_a_node_without_polyak_is_said_in_a_sentence(nodes, search, tmp_path):
    bare = tmp_path / "bare" / "polyak_lab"
    bare.mkdir(parents=True)
    (bare / "__init__.py").write_text("""raise ModuleNotFoundError("No module named 'polyak_lab'")""")
    second = nodes.join("bare", PYTHONPATH=str(bare.parent))
    driver = Driver(search(4), tmp_path / "out", nodes)
    assert driver.finish() == 1
    second.kill()
    (line,) = driver.errors.splitlines()
    assert "Python finds no polyak_lab on the node: every node needs pip install 'polyak[lab,ray]'." in line


def test_without_ray(search, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "polyak_lab.sweep.ray_cluster", raising=False)
    assert call("sweep", search(2), "--out", tmp_path / "out", "--ray", "auto") == 1
    assert (
        capsys.readouterr().err == "polyak: polyak sweep --ray needs Ray: install it with pip install 'polyak[ray]'.\n"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("address", "said"),
    [
        (f"127.0.0.1:{free_port()}", "No Ray cluster answers at 127.0.0.1:"),
        ("ray://somewhere", "write auto or HOST:PORT"),
    ],
)
def test_an_address_where_no_cluster_is(address, said, search, tmp_path, capsys):
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    assert call("sweep", search(2), "--out", tmp_path / "out", "--ray", address) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not (tmp_path / "out").exists()
