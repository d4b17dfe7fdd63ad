"""How much of the library one step passes through; `benchmarks/step_path.py` prints the way."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "step_path.py"


@pytest.mark.parametrize(
    ("options", "most"), [({}, (48, 35, 9)), ({"fused": True}, (42, 30, 9))], ids=["default", "fused"]
)
def test_a_warm_step_passes_through_few_functions(options, most):
    spec = importlib.util.spec_from_file_location("step_path", SCRIPT)
    step_path = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(step_path)
    counts = step_path.counts(step_path.walk(step_path.warm_step(**options)))
    assert all(count <= limit for count, limit in zip(counts, most, strict=True)), counts
