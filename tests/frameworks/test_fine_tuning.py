"""The example that fine-tunes a language model learns."""

import importlib.util
from pathlib import Path

import pytest

pytestmark = [pytest.mark.frameworks, pytest.mark.filterwarnings("ignore")]


def test_a_model_is_fine_tuned(capsys):
    path = Path(__file__).parents[2] / "examples" / "fine_tune.py"
    spec = importlib.util.spec_from_file_location("fine_tune", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.main([]) < 4.0  # log(256) = 5.5 without training
    assert "->" in capsys.readouterr().out
