"""The suite on the oldest and the newest supported Python and torch: `make test-versions`.

A Python that is not installed is skipped, which nox says.
"""

from pathlib import Path

import nox

OLDEST, NEWEST = ("3.11", "2.11.0"), ("3.13", "2.13.0")
nox.options.error_on_missing_interpreters = False


@nox.session(reuse_venv=True)
@nox.parametrize(("python", "torch"), [OLDEST, NEWEST])
def tests(session: nox.Session, torch: str) -> None:
    """Install the locked packages with one torch, and run the tests."""
    lock = Path("requirements.lock").read_text(encoding="utf-8").splitlines()
    others = Path(session.create_tmp()) / "requirements.txt"
    pins = [line for line in lock if not line.startswith(("torch==", "triton==", "nvidia-", "cuda-"))]
    others.write_text("\n".join(pins), encoding="utf-8")
    session.install(f"torch=={torch}", "-r", str(others))
    session.install("--no-deps", "--no-build-isolation", "--editable", ".")
    session.run("pytest", "-n", "auto", *session.posargs)
