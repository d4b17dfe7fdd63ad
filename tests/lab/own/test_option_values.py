"""Values of options that the JSON of a configuration cannot hold are refused before anything trains."""

import re

import pytest

from lab.runs import call
from polyak_lab.config.strict import MOST_LEVELS
from polyak_lab.runs import stored

OPEN = """
def load(**options):
    from acme import sets
    return sets.load()

def build(shape, outputs, **options):
    from acme import nets
    return nets.build(shape, outputs)

def loss(outputs, targets, **options):
    import torch
    return torch.nn.functional.cross_entropy(outputs, targets)

def rival(params, **options):
    import torch
    return torch.optim.SGD(params, lr=0.1)
"""
RECIPE = """
seeds = [0]
[[row]]
name = "A"
data = {{ name = "acme.open:load"{data} }}
model = {{ name = "acme.open:build"{model} }}
objective = {{ name = "acme.open:loss"{objective} }}
optimizer = {{ name = "acme.open:rival"{optimizer} }}
training = {{ epochs = 1, batch_size = 16, device = "cpu", threads = 1 }}
"""
SECTIONS = ("data", "model", "objective", "optimizer")
WRONG = {
    "a date": ("2020-01-01", 'holds 2020-01-01, which no configuration can: write it as a text, "2020-01-01".'),
    "a time": ("12:30:00", 'holds 12:30:00, which no configuration can: write it as a text, "12:30:00".'),
    "a date in a table": ("[{ b = 2020-01-01 }]", "holds 2020-01-01, which no configuration can"),
    "a huge integer": ("9" * 25, "holds a number of 84 bits, but it must lie between -2**63 and 2**63 - 1."),
    "a huge integer in a list": (f"[1, {2**63}]", "holds a number of 64 bits, but it must lie"),
    "deep lists": ("[" * 17 + "]" * 17, f"is nested in more than {MOST_LEVELS} levels: write it flatter."),
    "deep tables": ("{ a = " * 17 + "1" + " }" * 17, f"is nested in more than {MOST_LEVELS} levels: write it flatter."),
}
RIGHT = {
    "limits": f"[{2**63 - 1}, {-(2**63)}]",
    "depth": "[" * MOST_LEVELS + "]" * MOST_LEVELS,
    "others": '[true, inf, nan, "2020-01-01", { a = {}, "" = 1.5 }]',
}


def write(folder, section, value):
    (folder / "acme" / "open.py").write_text(OPEN, encoding="utf-8")
    text = f", since = {value}" if section == "optimizer" else f", options = {{ since = {value} }}"
    (folder / "open.toml").write_text(RECIPE.format(**{**dict.fromkeys(SECTIONS, ""), section: text}))


@pytest.mark.parametrize("section", SECTIONS)
@pytest.mark.parametrize("case", WRONG)
def test_a_value_that_no_configuration_holds(acme, capsys, case, section):
    value, message = WRONG[case]
    write(acme, section, value)
    assert call("run", "open.toml", "--out", "runs") == 1
    said = capsys.readouterr().err
    assert re.fullmatch(r"polyak: open\.toml, row [^\n]+\.\n", said)
    assert "since" in said
    assert message in said
    assert not (acme / "runs").exists()


@pytest.mark.parametrize("section", SECTIONS)
@pytest.mark.parametrize("case", RIGHT)
def test_what_is_trained_can_be_read(acme, capsys, case, section):
    write(acme, section, RIGHT[case])
    assert call("run", "open.toml", "--out", "runs") == 0
    assert call("pack", "runs", "--out", "packed") == 0
    assert capsys.readouterr().err == ""
    assert [run.finished for run in stored.find_runs([acme / "packed"])] == [True]


@pytest.mark.parametrize("flag", ["--data-set", "--model-set", "--objective-set", "--set"])
def test_a_flag_with_such_a_value(acme, capsys, flag):
    write(acme, "data", "1")
    names = {"--data": "load", "--model": "build", "--objective": "loss", "--optimizer": "rival"}
    flags = [word for name, value in names.items() for word in (name, f"acme.open:{value}")]
    assert call("train", *flags, flag, "since=2020-01-01", "--out", "run") == 1
    said = capsys.readouterr().err
    assert re.fullmatch(r'polyak: [^\n]+\.since holds 2020-01-01, [^\n]+ write it as a text, "2020-01-01"\.\n', said)
