"""The fault campaign: kills at every file operation, damage to every file, full disks, two processes on one folder.

After any of them, the commands end with an exit code and a sentence, or with exactly what they had
shown without it. A short version runs with every test run; `make test-slow` runs all of it. Either
prints its counts.
"""

import multiprocessing
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab import campaign
from lab.campaign import RUN, Counts, Said
from polyak_lab.progress import Progress

FILES = ("config.json", "environment.json", "metrics.jsonl", "timings.jsonl", "checkpoint.pt", "summary.json")
KINDS = ("flip", "cut", "zero", "lose", "insert")
full = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run to its end, and one that was stopped after two of its three epochs."""
    root = tmp_path_factory.mktemp("whole")
    assert Said(*campaign.run_command(root / "finished")).silent()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Progress, "epoch_done", _stop_after_two_epochs)
        assert Said(*campaign.run_command(root / "stopped")).code == 130
    return root


def _stop_after_two_epochs(self, record, timing):
    if record["epoch"] == 2:
        raise KeyboardInterrupt


def attempt(folder, expected, counts, weights=True):
    """Go on after a fault; count what came of it."""
    said = [Said("table", folder, "--format", "csv"), Said(*campaign.run_command(folder))]
    said.append(Said("table", folder, "--format", "csv", "--report", folder / "page.html"))
    counts["faults"] += 1
    counts["tracebacks"] += any(one.traceback for one in said)
    named = [one.code != 0 or one.err for one in said]
    counts["said in a sentence"] += any(named)
    if not any(named):
        same = campaign.ending(folder, weights) == campaign.ending(expected, weights)
        same &= said[-1].out == campaign.shown(expected)
        counts["as without the fault"] += same
        counts["silent differences"] += not same
    for one in said:
        if one.traceback:
            print(one.traceback)


def check_damage(whole, state, name, kind, place, amount, counts, tmp_path):
    folder = tmp_path / "damaged"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole / state, folder)
    file = folder / RUN / name
    if not file.exists():
        return
    file.write_bytes(campaign.damage(file.read_bytes(), kind, place, amount))
    weights = (state, name) != ("finished", "checkpoint.pt")  # nobody reads it any more
    attempt(folder, whole / "finished", counts, weights)
    counts.check(f"{state}, {name}, {kind} at {place}, {amount}")


@pytest.mark.parametrize("name", FILES)
def test_damage(name, whole, tmp_path, record_property):
    counts = Counts()
    for number, kind in enumerate(KINDS):
        state = ("finished", "stopped")[number % 2]
        check_damage(whole, state, name, kind, 0.15 + 0.17 * number, 0.2 * number, counts, tmp_path)
    record_property("campaign", dict(counts))


@full
@pytest.mark.parametrize("state", ["finished", "stopped"])
@pytest.mark.parametrize("name", FILES)
def test_damage_anywhere(name, state, whole, tmp_path, record_property):
    counts = Counts()
    fraction = st.floats(0, 1, exclude_max=True)

    @settings(max_examples=120)
    @given(kind=st.sampled_from(KINDS), place=fraction, amount=fraction)
    def check(kind, place, amount):
        check_damage(whole, state, name, kind, place, amount, counts, tmp_path)

    check()
    record_property("campaign", dict(counts))


def kill(folder, whole, numbers):
    counts = Counts()
    for number in numbers:
        shutil.rmtree(folder, ignore_errors=True)
        assert campaign.in_child(campaign.die_at, folder, number) == -9
        if not (folder / RUN / "config.json").exists():  # there is no run to show yet
            assert Said(*campaign.run_command(folder)).silent()
        attempt(folder, whole / "finished", counts)
        counts["left over"] += len(campaign.leftovers(folder))
        assert not counts["said in a sentence"], f"killed at file operation {number}: {counts}"
        counts.check(f"killed at file operation {number}")
    assert not counts["left over"]
    return counts


@pytest.fixture(scope="module")
def operations(tmp_path_factory):
    root = tmp_path_factory.mktemp("operations")
    campaign.in_child(campaign.count_operations, root / "run", root / "count")
    return int((root / "count").read_text())


def test_killed_at_some_file_operations(operations, whole, tmp_path, record_property):
    assert operations > 30
    record_property("campaign", dict(kill(tmp_path / "run", whole, range(3, operations, operations // 4))))


@full
def test_killed_at_every_file_operation(operations, whole, tmp_path, record_property):
    record_property("campaign", dict(kill(tmp_path / "run", whole, range(operations))))


def fill_disk(folder, whole, sizes):
    counts = Counts()
    for size in sizes:
        shutil.rmtree(folder, ignore_errors=True)
        command = campaign.run_command(folder)
        with campaign.largest_file(size):
            said = Said(*command)
        counts["tracebacks"] += bool(said.traceback)
        counts["silent differences"] += said.code == 0
        counts["left over"] += len(campaign.leftovers(folder))
        attempt(folder, whole / "finished", counts)
        counts.check(f"no file larger than {size} bytes: {said.err}{said.traceback}")
    assert not counts["left over"]
    return counts


def limits(whole):
    sizes = [(whole / "finished" / RUN / name).stat().st_size for name in FILES]
    return sorted({0, 1, *(size - 1 for size in sizes), *(size // 2 for size in sizes)})


def test_full_disk(whole, tmp_path, record_property):
    record_property("campaign", dict(fill_disk(tmp_path / "run", whole, limits(whole)[1::4])))


@full
def test_full_disk_at_every_size(whole, tmp_path, record_property):
    largest = max(limits(whole))
    sizes = sorted({*limits(whole), *range(0, 6000, 250), *range(6000, largest, 1000)})
    record_property("campaign", dict(fill_disk(tmp_path / "run", whole, sizes)))


def race(folder, whole, times):
    context, counts = multiprocessing.get_context("forkserver"), Counts()
    for _ in range(times):
        shutil.rmtree(folder, ignore_errors=True)
        command = campaign.run_command(folder)
        children = [context.Process(target=campaign.quiet_call, args=command) for _ in range(3)]
        for child in children:
            child.start()
        for child in children:
            child.join()
        codes = [child.exitcode for child in children]
        counts["tracebacks"] += not set(codes) <= {0, 1}
        counts["silent differences"] += 0 not in codes
        attempt(folder, whole / "finished", counts)
        counts.check(f"three processes ended with {codes}")
    assert not counts["said in a sentence"]
    return counts


@full
def test_three_processes_on_one_folder(whole, tmp_path, record_property):
    record_property("campaign", dict(race(tmp_path / "run", whole, 20)))
