"""Sequence-length warmup in Hugging Face's Trainer: a small GPT-2 of the bytes of a text, in seconds on a laptop.

    pip install "transformers[torch]"
    python examples/huggingface_trainer.py [--ds-config FILE] [--text FILE] [--steps 60] [--output DIRECTORY]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed

from megatron_slw.slw.huggingface import SequenceLengthWarmupMixin

HERE = Path(__file__).resolve().parent
LENGTH = 64


class WarmupTrainer(SequenceLengthWarmupMixin, Trainer):
    """A Trainer that cuts the batches of each step."""


def main(argv: Sequence[str] | None = None) -> int:
    """Train and evaluate, print; exit status 0."""
    parser = argparse.ArgumentParser(description="Sequence-length warmup in Hugging Face's Trainer.")
    parser.add_argument("--ds-config", default=HERE / "own_loop" / "ds_slw.json")
    parser.add_argument("--text", default=__file__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--output", default="runs/huggingface_trainer")
    args = parser.parse_args(argv)

    set_seed(1234)
    text = list(Path(args.text).read_bytes())
    rows = [text[i : i + LENGTH] for i in range(0, len(text) - LENGTH, 8)]
    samples = [{"input_ids": row, "labels": row} for row in rows]
    sizes = {"vocab_size": 256, "n_positions": LENGTH, "n_embd": 64, "n_layer": 2, "n_head": 2}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=None, eos_token_id=None))
    # By default the Trainer divides the loss of a GPT-2 by all L labels of a row, of which the model predicts L - 1.
    model.loss_type = "ForCausalLM"
    trainer = WarmupTrainer(
        model,
        TrainingArguments(
            args.output,
            max_steps=args.steps,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            learning_rate=3e-3,
            logging_steps=10,
            save_strategy="no",
            dataloader_pin_memory=False,
            report_to="none",
        ),
        train_dataset=samples,
        eval_dataset=samples[::8],
        sequence_length_warmup=args.ds_config,
    )
    trainer.train()
    print(f"evaluation | len {LENGTH} | loss {trainer.evaluate()['eval_loss']:.4f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
