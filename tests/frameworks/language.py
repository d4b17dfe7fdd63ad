"""A language model small enough for a test, its data, and the objective of a step by the formula."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from truth import ROWS, STEPS, Objective, autocast

VOCABULARY = 13
LENGTH = 10
IGNORED = -100


class Sequences(Dataset):  # type: ignore[type-arg]
    """Token sequences whose labels end early, each somewhere else."""

    def __init__(self, count: int) -> None:
        generator = torch.Generator().manual_seed(2)
        self.tokens = torch.randint(VOCABULARY, (count, LENGTH), generator=generator)
        ends = torch.randint(3, LENGTH + 1, (count, 1), generator=generator)
        self.labels = self.tokens.masked_fill(torch.arange(LENGTH) >= ends, IGNORED)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"input_ids": self.tokens[i], "labels": self.labels[i]}


def sequences(accumulate: int, processes: int = 1) -> Sequences:
    return Sequences(STEPS * ROWS * accumulate * processes)


def tiny() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=LENGTH, **sizes))


def token_mean(model: Any, accumulate: int, smoothing: float, precision: str, processes: int = 1) -> Objective:
    """Return the mean over all tokens of step t, not the mean of the micro-batches' means."""
    data = sequences(accumulate, processes)
    size = accumulate * processes

    def objective(t: int) -> Tensor:
        total, count = torch.zeros((), dtype=torch.double), 0
        for i in range(t * size, (t + 1) * size):
            rows = slice(i * ROWS, (i + 1) * ROWS)
            device = next(model.parameters()).device
            with autocast(precision, device.type):
                logits = model(input_ids=data.tokens[rows].to(device)).logits
            targets = data.labels[rows, 1:].to(device)
            losses = F.cross_entropy(
                logits[:, :-1].float().transpose(1, 2), targets, reduction="none", label_smoothing=smoothing
            )
            total = total + losses.double().sum().cpu()
            count += int((targets != IGNORED).sum())
        return total / count

    return objective
