"""The package as it is installed: what the wheel holds, its metadata, and that it runs with torch alone."""

from __future__ import annotations

import email
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

import polyak

hatchling = pytest.importorskip("hatchling.build")
ROOT = Path(__file__).parent.parent
LIBRARY_FILES = ("polyak/py.typed", "polyak/_backend/cpu_kernels.c")
LAB_FILES = ("polyak_lab/py.typed", "polyak_lab/report/page.html.j2", "polyak_lab/data/digits.csv.gz")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return folder / hatchling.build_wheel(str(folder))


@pytest.fixture(scope="module")
def metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return email.message_from_bytes(archive.read(name))


def test_the_wheel_holds_both_packages_and_their_files(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {*LIBRARY_FILES, *LAB_FILES} <= {*names}
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"polyak", "polyak_lab", f"polyak-{polyak.__version__}.dist-info"}
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_metadata_names_licence_pythons_and_addresses(metadata):
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Requires-Python"] == "<3.14,>=3.11"
    assert metadata.get_all("Project-URL")
    classifiers = metadata.get_all("Classifier")
    assert "Typing :: Typed" in classifiers
    assert {f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)} <= {*classifiers}
    assert not [name for name in classifiers if name.startswith("License")]  # the SPDX expression is the licence
    needed = [entry for entry in metadata.get_all("Requires-Dist") if "extra ==" not in entry]
    assert needed == ["torch>=2.11"]


def test_the_versions_that_are_tested_are_those_that_are_supported():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pairs = re.search(r"OLDEST, NEWEST = (.*)", (ROOT / "noxfile.py").read_text(encoding="utf-8"))[1]
    oldest, newest = re.findall(r'\("([\d.]+)", "([\d.]+)"\)', pairs)
    assert project["requires-python"] == f">={oldest[0]},<3.{int(newest[0][2:]) + 1}"
    assert project["dependencies"] == [f"torch>={oldest[1].removesuffix('.0')}"]
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert f"\ntorch=={newest[1]}\n" in lock


@pytest.mark.slow
def test_the_wheel_runs_with_torch_alone(wheel, tmp_path):
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv/bin/python"
    paths = subprocess.check_output([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True)
    subprocess.run([sys.executable, ROOT / "scripts/link-torch", paths.strip()], check=True)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(paths.strip())
    done = subprocess.run(
        [python, ROOT / "scripts/first-page", ROOT / "README.md"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "with torch alone" in done.stdout
