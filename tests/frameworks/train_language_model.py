"""One process of a training: `python train_language_model.py FOLDER STOP`; process 1 kills itself before step STOP.

It goes on from the last checkpoint in the folder if there is one, and leaves its weights and its log there.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

import polyak
from polyak.integrations.transformers import PolyakTrainerMixin

TEXT = Path(__file__).parent.parent / "data" / "moby-dick.txt"
LENGTH = 48
STEPS = 40
RANK = int(os.environ["RANK"])


class Characters(Dataset):  # type: ignore[type-arg]
    """Windows of a text, as numbers of characters."""

    def __init__(self, text: str) -> None:
        self.alphabet = sorted(set(text))
        self.codes = torch.tensor([self.alphabet.index(letter) for letter in text])

    def __len__(self) -> int:
        return len(self.codes) // 8 - LENGTH // 8

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        window = self.codes[8 * i : 8 * i + LENGTH]
        return {"input_ids": window, "labels": window}


class Killed(TrainerCallback):
    """Ends one process as a machine failure does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if RANK == 1 and state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


class PolyakTrainer(PolyakTrainerMixin, Trainer):
    """The Trainer with its loss watched."""


def network(letters: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=letters, max_position_embeddings=LENGTH, attention_dropout=0.1, **sizes)
    return LlamaForCausalLM(config)


def main(folder: Path, stop: int) -> None:
    torch.set_num_threads(1)
    data = Characters(TEXT.read_text(encoding="utf-8"))
    arguments = TrainingArguments(
        str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        max_grad_norm=0.0,
        lr_scheduler_type="constant",
        save_steps=10,
        logging_steps=1,
        use_cpu=True,
        ddp_timeout=60,
        report_to="none",
        disable_tqdm=True,
        seed=1,
    )
    model = network(len(data.alphabet))
    method = (polyak.ALIG, {"lr": 0.05, "momentum": 0.9})
    trainer = PolyakTrainer(
        model, arguments, train_dataset=data, optimizer_cls_and_kwargs=method, callbacks=[Killed(stop)]
    )
    trainer.train(resume_from_checkpoint=any(folder.glob("checkpoint-*")) or None)
    torch.save(model.state_dict(), folder / f"weights-{RANK}.pt")
    if RANK == 0:
        (folder / "log.json").write_text(json.dumps(trainer.state.log_history), encoding="utf-8")
    torch.distributed.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # torch sometimes aborts on gloo's threads when the interpreter ends (pytorch/pytorch#190489)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
