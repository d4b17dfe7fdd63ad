"""The recipe, the code and the commands of docs/own-experiment.md are one experiment that runs."""

import re
import shlex
from pathlib import Path

import pytest

from lab.own import package
from lab.runs import call
from polyak_lab.runs import stored

PAGE = (Path(__file__).parents[3] / "docs" / "own-experiment.md").read_text(encoding="utf-8")
LOSS = "import torch.nn.functional as F\n\ndef loss(outputs, targets):\n    return F.cross_entropy(outputs, targets)\n"
RIVAL = "from torch.optim import SGD as Rival\n"


def block(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def project(tmp_path, monkeypatch):
    sets, nets = block("python")
    files = {"sets": sets, "nets": nets, "losses": LOSS, "rivals": RIVAL}
    recipe = block("toml")[0].replace("holdout = 1000", "holdout = 100").replace("seeds = [0, 1, 2]", "seeds = [0]")
    recipe = recipe.replace("pytorch_optimizer:AdEMAMix", "torch.optim:NAdam")
    named = {f"mypackage/{name}.py": text for name, text in files.items()}
    package.forget("mypackage")
    monkeypatch.chdir(package.write(tmp_path, {**named, "recipe.toml": recipe}))
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    package.forget("mypackage")


def test_the_page_is_an_experiment(project):
    run, train = (shlex.split(line) for line in block("bash")[0].replace("\\\n", "").splitlines())
    assert call(*run[1:], "--smoke") == 0
    rows = {run.label.row for run in stored.find_runs([project / "runs"])}
    assert rows == {"ALI-G", "AdEMAMix"}
    assert call(*train[1:], "--epochs", 1, "--out", "one") == 0
    assert call(*train[1:], "--epochs", 1, "--data", "mypackage.sets:stream", "--outputs", 2, "--out", "two") == 0
