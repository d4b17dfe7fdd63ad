"""The mixin in the released Trainer: what it logs and warns about, evaluation, and what happens without it."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
import transformers

import language
import polyak
from loops import sequential_trainer

pytestmark = [pytest.mark.frameworks, pytest.mark.filterwarnings("ignore")]


class EvaluateEveryStep(transformers.TrainerCallback):
    """Evaluates between the steps."""

    def __init__(self, made: Any, found: list[float]) -> None:
        self.made, self.found = made, found

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.found.append(self.made.evaluate(language.sequences(1))["eval_loss"])


def trainer(optimizer: Any = None, accumulate: int = 1, **arguments: Any) -> Any:
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    model = language.tiny()
    optimizer = polyak.ALIG(model.parameters(), lr=50.0) if optimizer is None else optimizer(model.parameters())
    return sequential_trainer(model, language.sequences(accumulate), optimizer, "32", accumulate, **arguments)


def advice_of(made: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made.train()
    messages = [str(warning.message) for warning in caught]
    return [message for message in messages if "TrainingArguments(" in message]


def test_the_step_size_that_was_taken_is_logged_beside_the_cap():
    made = trainer(accumulate=2)
    made.train()
    rows = [row for row in made.state.log_history if "learning_rate" in row]
    assert [row["learning_rate"] for row in rows] == [50.0] * 5
    assert all(0 < row["step_size"] < 50.0 for row in rows)
    assert rows[-1]["step_size"] == float(made.optimizer.param_groups[0]["step_size"])
    assert rows[-1].items() >= polyak.metrics(made.optimizer).items()


def test_clipping_and_a_decaying_schedule_are_warned_about_once_each():
    advice = advice_of(trainer(max_grad_norm=1.0, lr_scheduler_type="linear"))
    assert len(advice) == 2
    assert "max_grad_norm=1 " in advice[0]
    assert "TrainingArguments(max_grad_norm=0.0), since the optimizer's lr already caps the step" in advice[0]
    assert "lr_scheduler_type='linear'" in advice[1]
    assert "TrainingArguments(lr_scheduler_type='constant')" in advice[1]


@pytest.mark.parametrize("schedule", ["constant_with_warmup", "linear"])
def test_a_warm_up_without_a_cap_is_refused_before_the_first_step(schedule):
    with pytest.raises(ValueError, match=r"SPS: a warm-up multiplies lr=inf by 0, which is NaN: give a finite lr"):
        trainer(polyak.SPS, lr_scheduler_type=schedule, warmup_steps=2).train()
    for fine in ({"lr_scheduler_type": "constant", "warmup_steps": 2}, {"lr_scheduler_type": "constant_with_warmup"}):
        made = trainer(polyak.SPS, **fine)
        made.train()
        assert made.optimizer.param_groups[0]["lr"] == math.inf


def test_a_learning_rate_and_a_weight_decay_that_nobody_reads_are_warned_about_once_each():
    advice = advice_of(trainer(learning_rate=3e-4, weight_decay=0.1))
    assert len(advice) == 2
    assert "learning_rate=0.0003 has no effect" in advice[0]
    assert "polyak.ALIG(params, lr=0.0003)" in advice[0]
    assert "weight_decay=0.1 has no effect" in advice[1]
    assert "constraint=polyak.L2Ball(relative=1.5)" in advice[1]
    assert advice_of(trainer(learning_rate=50.0)) == []  # the cap of the optimizer


def test_a_weight_decay_that_the_method_has_is_named_as_its_option():
    def make(params):
        return polyak.MoMoAdam(params, weight_decay=0.01)

    (advice,) = advice_of(trainer(make, weight_decay=0.1))
    assert "given to the Trainer: write polyak.MoMoAdam(params, weight_decay=0.1)" in advice
    assert advice_of(trainer(make, weight_decay=0.01)) == []
    made = trainer(weight_decay=0.1)
    made.optimizer, made.optimizer_cls_and_kwargs = None, (polyak.MoMoAdam, {"lr": 0.1})
    assert advice_of(made) == []  # the Trainer hands it over


def test_settings_that_fit_and_other_optimizers_are_not_warned_about():
    assert advice_of(trainer()) == []
    made = trainer(torch.optim.SGD, max_grad_norm=1.0, lr_scheduler_type="linear")
    assert advice_of(made) == []
    assert all("step_size" not in row for row in made.state.log_history)


def test_the_trainer_may_make_the_optimizer_itself():
    made = trainer(weight_decay=0.0)
    made.optimizer, made.optimizer_cls_and_kwargs = None, (polyak.SPS, {"lr": 1.0, "c": 0.5})
    made.train()
    assert isinstance(made.optimizer.optimizer, polyak.SPS)
    assert len(made.optimizer.param_groups) == 2
    assert made.state.log_history[0].keys() >= {"step_size/0", "step_size/1"}


def test_evaluation_is_left_alone_and_leaves_nothing_behind():
    made = trainer()
    evaluated = []
    made.add_callback(EvaluateEveryStep(made, evaluated))
    made.train()
    assert len(evaluated) == 5
    loss, outputs = made.compute_loss(made.model, made._prepare_inputs(language.sequences(1)[:4]), return_outputs=True)
    assert torch.equal(loss, outputs["loss"])


def test_a_loss_function_of_ones_own_is_watched():
    made = trainer(accumulate=2)
    made.compute_loss_func = lambda outputs, labels, num_items_in_batch: outputs["logits"].float().square().mean() + 3.0
    made.train()
    losses = [row["loss"] for row in made.state.log_history if "loss" in row]
    assert math.isclose(float(made.optimizer.optimizer.last_step().loss), losses[-1], rel_tol=1e-3)
    assert losses[-1] > 6.0  # the sum of two: this function ignores the number of items


def test_without_the_mixin_the_error_names_the_trainer_and_the_line_to_write():
    made = trainer()
    plain = transformers.Trainer(
        model=made.model,
        args=made.args,
        train_dataset=made.train_dataset,
        optimizers=(polyak.ALIG(made.model.parameters()), None),
    )
    with pytest.raises(RuntimeError, match=r"the HF Trainer .* class PolyakTrainer\(PolyakTrainerMixin, Trainer\)"):
        plain.train()
