"""Fine-tune a language model with the Trainer of Hugging Face.

Without arguments it fine-tunes a tiny model with random weights, so that nothing is downloaded:
python fine_tune.py MODEL TEXT takes a model of yours, with its tokenizer, and a text file.
"""

import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

import polyak
from polyak.integrations.transformers import PolyakTrainerMixin

LENGTH = 32


class PolyakTrainer(PolyakTrainerMixin, Trainer):
    """A Trainer whose optimizer reads the loss."""


def load(arguments: list[str]) -> tuple[torch.nn.Module, list[int]]:
    """Return the model and its tokens; bytes are the tokens of the tiny model."""
    if arguments:
        name, text = arguments
        tokens = AutoTokenizer.from_pretrained(name)(Path(text).read_text(encoding="utf-8"))["input_ids"]
        return AutoModelForCausalLM.from_pretrained(name), tokens
    torch.manual_seed(0)
    config = GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=256, n_positions=LENGTH)
    return GPT2LMHeadModel(config), list(b"The quick brown fox jumps over the lazy dog. " * 100)


def main(arguments: list[str]) -> float:
    """Fine-tune, and return the last loss that was logged."""
    model, tokens = load(arguments)
    rows = torch.tensor(tokens[: len(tokens) // LENGTH * LENGTH]).view(-1, LENGTH)
    data = [{"input_ids": row, "labels": row} for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            folder,
            num_train_epochs=3,
            per_device_train_batch_size=8,
            gradient_accumulation_steps=2,
            max_grad_norm=0.0,  # the step size belongs to the whole gradient
            lr_scheduler_type="constant",  # lr is a cap
            logging_steps=8,
            save_strategy="no",
            report_to="none",
        )
        optimizer = polyak.ALIG(model.parameters(), lr=0.5)
        trainer = PolyakTrainer(model, settings, train_dataset=data, optimizers=(optimizer, None))
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f}")
    return losses[-1]


if __name__ == "__main__":
    main(sys.argv[1:])
