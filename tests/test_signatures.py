"""Every option of every method is written once and seen everywhere: in signature, help, copies and groups."""

from __future__ import annotations

import copy
import inspect
import pickle
import pydoc
import re
from typing import get_type_hints

import pytest
import torch
from torch.nn import Parameter

import polyak
from catalogue import each_method

BASE = inspect.signature(polyak.PolyakOptimizer.__init__).parameters
COMMON = set(get_type_hints(polyak.CommonAndMomentum))


def test_the_common_options_are_the_keyword_arguments_of_the_base():
    keywords = {name for name, parameter in BASE.items() if parameter.kind is parameter.KEYWORD_ONLY}
    assert keywords == COMMON


@each_method
def test_the_signature_and_the_help_show_every_option(method):
    parameters = inspect.signature(method.cls).parameters
    shown = pydoc.plain(pydoc.render_doc(method.cls))
    assert parameters.keys() >= set(get_type_hints(polyak.Common)) | {"params", "lr"}
    assert not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    assert all(f"{name}: " in method.cls.__doc__ for name in parameters)
    assert all(f"{name}:" in shown for name in parameters)
    for name in get_type_hints(polyak.Common):
        assert parameters[name].default == BASE[name].default
    for name in COMMON:
        assert f"        {name}: " in polyak.PolyakOptimizer.__doc__


@each_method
def test_a_copy_and_a_pickle_keep_every_option(method):
    optimizer = method.build([Parameter(torch.ones(2))], lower_bound=-2.0, momentum=0.3, foreach=False)
    for twin in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert twin.defaults == optimizer.defaults
        assert twin.param_groups[0].keys() == optimizer.param_groups[0].keys()


def test_a_method_that_takes_no_momentum_has_none():
    class Half(polyak.PolyakOptimizer):
        def __init__(self, params, lr=1.0):
            super().__init__(params, lr)

        def step_size(self, line, group):
            return line.gap / (2 * line.slope), group["lr"]

    assert "momentum" not in Half([Parameter(torch.ones(2))]).param_groups[0]
    with pytest.raises(TypeError, match=r"^Half has no option 'momentum'[^\n]*\.$"):
        Half([Parameter(torch.ones(2))], momentum=0.5)


@each_method
def test_help_names_every_common_error(method):
    raises = inspect.getdoc(method.cls).split("Raises:\n")[1].split("\n\n")[0]
    assert {"ValueError", "TypeError", "RuntimeError"} <= set(re.findall(r"^ +(\w+): ", raises, re.MULTILINE))
