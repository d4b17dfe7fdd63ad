"""Where output goes wrong: full disks, readers that leave, terminals without Unicode, packages that are not there."""

import os
import shlex
import signal
import subprocess
import sys

import pytest

from lab.report.test_tables import store
from polyak_lab import console

POLYAK = f"{sys.executable} -m polyak_lab"
TRAIN = "train --data digits --model logistic --optimizer alig --device cpu --threads 1 --epochs 3000"


def polyak(command, tmp_path, before="", after="", **environment):
    """Run a command line in a shell; return its exit code, output and errors."""
    line = f"{before} {POLYAK} {command} {after}"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line],
        capture_output=True,
        cwd=tmp_path,
        env={**os.environ, **environment},
        timeout=200,
    )
    encoding = environment.get("PYTHONIOENCODING", "utf-8")
    return done.returncode, done.stdout.decode(encoding), done.stderr.decode(encoding)


@pytest.fixture
def runs(tmp_path):
    for seed in (0, 1):
        store(tmp_path / "runs" / f"seed-{seed}", "ALI-G γ", "alig", None, seed, 0.9, 0.5)
    return tmp_path / "runs"


@pytest.mark.parametrize("command", ["table runs", "table runs --format csv", "--help", "run --help"])
def test_a_full_standard_output(command, runs, tmp_path):
    code, _, errors = polyak(command, tmp_path, after="> /dev/full")
    assert code == 1
    assert (
        errors
        == "polyak: Cannot write to standard output: No space left on device. Run the same command again to resume.\n"
    )


@pytest.mark.parametrize("command", ["table runs", "--help"])
def test_no_output_at_all(command, runs, tmp_path):
    assert polyak(command, tmp_path, after="> /dev/full 2> /dev/full") == (1, "", "")
    assert polyak(command, tmp_path, after=">&- 2>&-") == (0, "", "")


@pytest.mark.parametrize("command", ["table runs", "--help"])
def test_a_reader_that_leaves_at_once(command, runs, tmp_path):
    assert polyak(command, tmp_path, after="| true") in ((0, "", ""), (128 + signal.SIGPIPE, "", ""))


def test_a_reader_of_a_training_run_that_leaves(tmp_path):
    """The run stops, quietly, and can go on."""
    code, out, errors = polyak(f"{TRAIN} --out run", tmp_path, after="| head -1")
    assert (code, errors) == (128 + signal.SIGPIPE, "")
    assert out.startswith("epoch 1/3000")
    done = (tmp_path / "run" / "metrics.jsonl").read_text().count("\n")
    assert 1 <= done < 3000
    assert (tmp_path / "run" / "checkpoint.pt").exists()


@pytest.mark.parametrize("size", ["0", "00", "1", "5", ""])
def test_a_width_that_no_terminal_has(size, runs, tmp_path):
    sized = {"COLUMNS": size, "LINES": size}
    code, out, errors = polyak("table runs", tmp_path, **sized)
    assert (code, errors) == (0, "")
    assert "90.00 ± 0.00" in out
    assert polyak("table nowhere", tmp_path, **sized)[::2] == (
        1,
        "polyak: nowhere is not a folder: name one that holds runs, such as runs/demo.\n",
    )
    assert polyak("table --help", tmp_path, before="timeout 60", **sized)[::2] == (0, "")


@pytest.mark.parametrize("command", ["table runs", "table runs --format markdown", "--help", "train --help"])
def test_a_terminal_without_unicode(command, runs, tmp_path):
    for encoding in ("ascii", "latin-1"):
        code, out, errors = polyak(command, tmp_path, PYTHONIOENCODING=encoding, COLUMNS="120")
        assert (code, errors) == (0, "")
        if command == "table runs":
            assert len({len(line) for line in out.splitlines()}) == 1
        if command.startswith("table") and encoding == "ascii":
            assert "90.00 +/- 0.00" in out
            assert "ALI-G \\u03b3" in out


def test_a_sentence_with_names_that_stderr_cannot_encode(tmp_path):
    code, out, errors = polyak("table 'no-模型-\x1b[31m'", tmp_path, PYTHONIOENCODING="ascii")
    assert (code, out) == (1, "")
    assert errors.startswith("polyak: no-\\u6a21\\u578b-\\x1b[31m is not a folder")


def stub(folder, name, text):
    (folder / f"{name}.py").write_text(text)
    return os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])


@pytest.mark.parametrize(
    ("package", "command"), [("tyro", "--help"), ("rich", "--help"), ("numpy", "data check digits"), ("torch", TRAIN)]
)
def test_without_a_package(package, command, tmp_path):
    path = stub(tmp_path, package, f"raise ModuleNotFoundError('No module named {package}', name='{package}')")
    code, out, errors = polyak(command, tmp_path, PYTHONPATH=path)
    assert (code, out) == (1, "")
    sentence = f"The command needs the package {package}, which is not installed: pip install 'polyak[lab]'."
    assert errors == f"polyak: {sentence}\n"


@pytest.mark.parametrize(("package", "code", "said"), [("tyro", -signal.SIGINT, ""), ("torch", 130, "stopped; ")])
def test_interrupted_while_packages_are_imported(package, code, said, tmp_path):
    path = stub(tmp_path, package, "import time\nprint('importing', flush=True)\ntime.sleep(60)")
    command = shlex.split(f"{POLYAK} {TRAIN}")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": tmp_path}
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, **pipes) as child:
        assert child.stdout.readline() == "importing\n"
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=60)
    assert child.returncode == code
    assert errors.startswith(f"polyak: {said}") if said else errors == ""
    assert "Traceback" not in errors


def test_importing_the_library_without_numpy_prints_nothing(tmp_path):
    path = stub(tmp_path, "numpy", "raise ModuleNotFoundError('No module named numpy', name='numpy')")
    done = subprocess.run(
        [sys.executable, "-c", "import polyak; polyak.ALIG"],
        capture_output=True,
        env={**os.environ, "PYTHONPATH": path},
        timeout=200,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_printable():
    assert console.printable("ALI-G γ 模型 🚀 é") == "ALI-G γ 模型 🚀 é"
    assert console.printable("\x1b[0m\udcff\u202e\n\u2028") == "\\x1b[0m\\udcff\\u202e\\n\\u2028"
