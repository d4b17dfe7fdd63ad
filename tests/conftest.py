"""One thread and one fixed set of random examples, so that every run of the suite checks the same things."""

import contextlib
import importlib
import os
import traceback
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from _pytest.raises import RaisesExc
from hypothesis import settings

if not torch.cuda.is_available():  # Triton decides at the import of kernels whether they are interpreted
    importlib.import_module("polyak")
    os.environ["TRITON_INTERPRET"] = "1"
    with contextlib.suppress(ImportError):
        importlib.import_module("polyak._backend.cuda_kernels")
    del os.environ["TRITON_INTERPRET"]

torch.set_num_threads(1)

settings.register_profile("polyak", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("polyak")


importlib.import_module("observe")
LIBRARY = Path(importlib.import_module("polyak").__file__).parent


def check_message(error: BaseException) -> None:
    """Hold every message that the library raises in the suite to its form: one short sentence with a full stop."""
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, NotImplementedError) or not frames or LIBRARY not in Path(frames[-1].filename).parents:
        return
    message = str(error)
    if (
        "must match the size of tensor" in message or "inconsistent tensor size" in message
    ):  # torch's own, from an operation that the library calls
        return
    assert message.endswith((".", "?")), f"no full stop: {message!r}"
    assert len(message) <= 300, f"{len(message)} characters: {message!r}"
    assert "\n" not in message, f"more than one line: {message!r}"


@pytest.fixture(autouse=True, scope="session")
def _messages_are_sentences() -> Iterator[None]:
    """Look at every error that a test expects."""
    expected = RaisesExc.__exit__

    def checked(self: Any, kind: Any, error: Any, trace: Any) -> bool:
        done = expected(self, kind, error, trace)
        if error is not None:
            check_message(error)
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RaisesExc, "__exit__", checked)
        yield


SHARES = {"ALIG": 1, "SPS": 8, "SmoothSPS": 8}  # between them they take every path of the step
SHARE = 20


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let `make test-full` cross every method with everything."""
    parser.addoption("--full", action="store_true", help="every method x every backend, type and momentum")


@pytest.hookimpl(trylast=True)  # once all of a test's cases are there
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Draw one case of a promise in `SHARES` for a method before pytest makes tests of them.

    At least one is drawn, but of promises that all methods make only for every second method. The draw is fixed by the
    names of the cases, so that every run checks the same things.
    """
    if metafunc.config.getoption("--full") or any("::" in argument for argument in metafunc.config.args):
        return
    drawn: dict[str, list[Any]] = {}
    for case in metafunc._calls:
        drawn.setdefault(getattr(case.params.get("method"), "name", "ALIG"), []).append(case)
    kept: set[int] = set()
    all_promise = len(drawn) > 11  # tests of some methods alone have fewer
    for name, cases in drawn.items():
        cases.sort(key=lambda case: zlib.crc32(f"{metafunc.definition.nodeid}[{case.id}]".encode()))
        has_turn = name in SHARES or not all_promise or zlib.crc32(f"{metafunc.definition.nodeid} {name}".encode()) % 2
        kept.update(map(id, cases[: max(bool(has_turn), len(cases) // SHARES.get(name, SHARE))]))
    metafunc._calls[:] = [case for case in metafunc._calls if id(case) in kept]


@pytest.fixture
def device_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the CPU take the path of a device, on which nothing may be read: masks instead of branches."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)


@pytest.fixture(params=["host", "device"])
def arithmetic(request: pytest.FixtureRequest) -> None:
    """Make the steps of a test once with plain numbers, where the host may read them, and once with masks."""
    if request.param == "device":
        request.getfixturevalue("device_arithmetic")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what the fault campaign and torch's own optimizer suite came to."""
    _print_campaign(terminalreporter)
    _print_conformance(terminalreporter)


def _print_campaign(terminalreporter: pytest.TerminalReporter) -> None:
    """Add up the counts of the fault campaign."""
    total = Counter({"faults": 0, "tracebacks": 0, "silent differences": 0})
    for report in terminalreporter.stats.get("passed", []):
        for key, counts in report.user_properties:
            if key == "campaign":
                total.update(counts)
    if total["faults"]:
        counts = ", ".join(f"{count} {what}" for what, count in total.items())
        terminalreporter.section(f"fault campaign: {counts}")


def _print_conformance(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how much of torch's own optimizer suite ran, and which of its tests do not apply."""
    kinds = {kind: terminalreporter.stats.get(kind, []) for kind in ("passed", "failed", "skipped")}
    mine = {kind: [report for report in all_ if "test_conformance" in report.nodeid] for kind, all_ in kinds.items()}
    if not any(mine.values()):
        return
    counts = ", ".join(f"{len(reports)} {kind}" for kind, reports in mine.items())
    terminalreporter.section(f"torch's optimizer tests: {counts}")
    for name, reason in importlib.import_module("conformance").NOT_APPLICABLE.items():
        terminalreporter.line(f"{name}: {reason}")
