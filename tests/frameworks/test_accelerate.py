"""Our `backward` in the released Accelerate."""

from __future__ import annotations

import math
from typing import Any

import accelerate
import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset

import polyak
from polyak.integrations.accelerate import backward, step_size
from truth import ROWS, network, samples

pytestmark = [pytest.mark.frameworks, pytest.mark.filterwarnings("ignore")]


def prepared(accumulate: int = 1, batches: int = 4, **options: Any) -> Any:
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    driver = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    model = network()
    optimizer = polyak.ALIG(model.parameters(), **{"lr": math.inf, **options})
    loader = DataLoader(Subset(samples(4), range(batches * ROWS)), ROWS)
    return driver, optimizer, *driver.prepare(model, optimizer, loader)


def test_the_step_size_that_was_taken_can_be_logged():
    driver, optimizer, model, wrapped, loader = prepared()
    for x, y in loader:
        backward(driver, wrapped, F.cross_entropy(model(x), y))
        wrapped.step()
        wrapped.zero_grad()
    assert step_size(wrapped) == {"step_size": float(optimizer.param_groups[0]["step_size"])}
    assert step_size(wrapped)["step_size"] > 0
    assert polyak.metrics(wrapped) == polyak.metrics(optimizer)
    wrapped.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))]})
    assert step_size(optimizer).keys() == {"step_size/0", "step_size/1"}


def test_a_shorter_accumulation_at_the_end_is_what_accelerate_made_of_it():
    """It still divides by the full number, and so must the loss."""
    driver, optimizer, model, wrapped, loader = prepared(accumulate=3, batches=4)
    for x, y in loader:
        with driver.accumulate(model):
            loss = F.cross_entropy(model(x), y)
            backward(driver, wrapped, loss)
            wrapped.step()
            wrapped.zero_grad()
    torch.testing.assert_close(optimizer.last_step().loss, loss.detach() / 3, rtol=1e-6, atol=0)


def test_without_it_the_error_names_accelerate_and_the_line_to_write():
    driver, _, model, wrapped, loader = prepared()
    x, y = next(iter(loader))
    driver.backward(F.cross_entropy(model(x), y))
    with pytest.raises(RuntimeError, match=r"needs the loss: Accelerate .* backward\(accelerator, optimizer, loss\)"):
        wrapped.step()


def test_another_kind_of_optimizer_is_refused_in_one_sentence():
    sgd = torch.optim.SGD(network().parameters(), 0.1)
    with pytest.raises(TypeError, match=r"a SGD holds none: write accelerator\.backward\(loss\)\.$"):
        backward(None, sgd, torch.ones(()))
