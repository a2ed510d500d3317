"""The Trainer of transformers with a warmup: the length of every step, the loss's divisor, evaluation, resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed

from megatron_slw.config.errors import ConfigError
from megatron_slw.slw.huggingface import SequenceLengthWarmupMixin
from megatron_slw.slw.warmup import SequenceLengthWarmup

FULL, ROWS, ACCUMULATED, STEPS = 32, 3, 2, 10
LENGTHS = [8, 8, 16, 16, 16, 24, 24, 32, 32, 32]
CURRICULUM = {
    "enabled": True,
    "curriculum_type": "seqlen",
    "min_difficulty": 8,
    "max_difficulty": FULL,
    "schedule_type": "fixed_linear",
    "schedule_config": {"duration": 0.8, "difficulty_step": 8},
}


class SpyingTrainer(SequenceLengthWarmupMixin, Trainer):
    """Writes down (step, length, labels that the loss is divided by) of every batch that the model sees."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.trained: list[tuple[int, int, int]] = []
        self.evaluated: list[int] = []

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        length = inputs["input_ids"].shape[1]
        if model.training:
            self.trained.append((self.state.global_step, length, int(kwargs["num_items_in_batch"])))
        else:
            self.evaluated.append(length)
        return super().compute_loss(model, inputs, *args, **kwargs)


def trainer_in(folder: Path, source: Any = CURRICULUM, **settings: Any) -> SpyingTrainer:
    set_seed(1)
    config = GPT2Config(vocab_size=64, n_positions=FULL, n_embd=16, n_layer=1, n_head=2, bos_token_id=None)
    config.eos_token_id = None
    rows = torch.randint(64, (48, FULL)).tolist()
    samples = [{"input_ids": row, "labels": row} for row in rows]
    arguments = TrainingArguments(
        str(folder),
        per_device_train_batch_size=ROWS,
        gradient_accumulation_steps=ACCUMULATED,
        learning_rate=1e-2,
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        **{"max_steps": STEPS, "save_strategy": "no"} | settings,
    )
    model = GPT2LMHeadModel(config)
    model.loss_type = "ForCausalLM"  # the class's name hides it, and the Trainer would count the first labels too
    data = {"train_dataset": samples, "eval_dataset": samples[:6]}
    return SpyingTrainer(model, arguments, sequence_length_warmup=source, **data)


def wanted(first: int = 0) -> list[tuple[int, int, int]]:
    """Of every accumulated batch from step `first` on; a row of L labels predicts L - 1."""
    steps = [(step, length, ACCUMULATED * ROWS * (length - 1)) for step, length in enumerate(LENGTHS)]
    return [batch for batch in steps[first:] for _ in range(ACCUMULATED)]


def test_the_schedule_of_this_page() -> None:
    warmup = SequenceLengthWarmup.from_config(CURRICULUM, STEPS)
    assert [warmup.seq_len(step) for step in range(STEPS)] == LENGTHS


@pytest.mark.parametrize("workers", [0, 2])
def test_every_batch_has_the_length_of_its_step(tmp_path: Path, workers: int) -> None:
    """Workers collate batches of later steps in advance; the loss is divided by the labels that are left."""
    trainer = trainer_in(tmp_path, eval_strategy="steps", eval_steps=3, dataloader_num_workers=workers)
    trainer.train()
    assert trainer.trained == wanted()
    assert trainer.evaluated == [FULL] * len(trainer.evaluated) and trainer.evaluated
    assert [entry["seq_len"] for entry in trainer.state.log_history if "loss" in entry] == LENGTHS
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert all(3 < loss < 5 for loss in losses), "log(64) = 4.16; divided by the uncut labels it begins at 1"


def test_a_resumed_run_is_the_same_run(tmp_path: Path) -> None:
    whole = trainer_in(tmp_path, save_strategy="steps", save_steps=4)
    whole.train()
    resumed = trainer_in(tmp_path)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert resumed.trained == wanted(4)
    for (name, one), other in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_a_warmup_made_by_hand(tmp_path: Path) -> None:
    warmup = SequenceLengthWarmup.from_config(CURRICULUM, STEPS, preserve_end_of_sequence=True)
    trainer = trainer_in(tmp_path, warmup)
    trainer.train()
    assert trainer.trained == wanted()


def test_epochs_and_tokens_are_the_trainer_s(tmp_path: Path) -> None:
    """48 samples in batches of 6 are 8 steps an epoch; 600 tokens go in steps of 6 rows."""
    source = CURRICULUM | {"schedule_config": {"total_curriculum_tokens": 600, "difficulty_step": 8}}
    trainer = trainer_in(tmp_path, source, max_steps=-1, num_train_epochs=2)
    trainer.train()
    warmup = SequenceLengthWarmup.from_config(source, 16, rows=ROWS * ACCUMULATED)
    assert [length for _, length, _ in trainer.trained[::2]] == [warmup.seq_len(step) for step in range(16)]
    full = [length for _, length, _ in trainer.trained[::2]].index(FULL)
    assert warmup.tokens(full) < 600 <= warmup.tokens(full + 1)


def test_a_wrong_configuration_stops_the_run_before_its_first_step(tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path, CURRICULUM | {"schedule_type": "linear"})
    with pytest.raises(ConfigError, match="schedule_type must be"):
        trainer.train()
