"""The quickstart's steps, each in a line."""

from __future__ import annotations

from stamps import Facts
from training import Training

from megatron_slw.config.schema import RunConfig
from megatron_slw.train.estimate import parameters
from megatron_slw.train.units import count_text, rate_text


def corpus_text(facts: Facts, what: str) -> str:
    """The text, and what of it is held out."""
    size = facts["bytes"]
    amount = f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size:,} bytes"
    return f"{facts['documents']:,} {what}, {amount} ({facts['held_out']} held out)"


def announced_text(config: RunConfig, training: Training) -> str:
    """The model and the schedule in a line."""
    model, warmup = config.model, config.curriculum
    text = f"{model.num_layers} layers x {model.hidden_size}, {count_text(parameters(model))} parameters"
    steps = f"{training.last_step:,} of {training.total_steps:,} steps"
    if warmup is None or warmup.total_curriculum_step is None:
        return f"{text}, length {model.seq_length}, {steps}"
    lengths = f"{warmup.min_difficulty} -> {warmup.max_difficulty}"
    return f"{text}, SLW {lengths} over {warmup.total_curriculum_step:,} steps, {steps}"


def trained_text(facts: Facts) -> str:
    """What a training did, in a line."""
    resumed = "".join(f", resumed at step {step}" for step in facts["resumed_at_steps"][:1])
    return (
        f"{facts['steps']:,} steps, {count_text(facts['tokens'] - facts['tokens_before'])} tokens, "
        f"{rate_text(facts['tokens_per_s'])} tok/s{resumed}"
    )


def grown_text(facts: Facts) -> str:
    """What a growth did, in a line."""
    before, after = facts["loss_before"], facts["loss_after"]
    verified = "not verified" if before is None else f"loss before {before:.5f}, after {after:.5f}"
    return f"{facts['small']} -> {facts['large']}   {verified}"


def evaluated_text(facts: Facts) -> str:
    """The held-out text under the model and under simpler ones, in a line."""
    return (
        f"held-out {facts['val_bits_per_byte']:.3f} bits/byte   (gzip -9: "
        f"{facts['gzip_bits_per_byte']:.3f}   unigram: {facts['unigram_bits_per_byte']:.3f})"
    )
