"""What benchmarks/slw_quality.py trains: one model, a batch and two learning rates, and the runs compared at them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SEEDS = (1, 2, 3)
VOCABULARY = 2048
LENGTH, SHORTEST, MICRO = 128, 8, 16
ROWS = 16
LOW_RATE, HIGH_RATE, HIGHEST_RATE = 1e-3, 3e-3, 1e-2
TRAIN_TOKENS = 700_000
WARMUP_STEPS = 10
DURATION = 0.4
EPOCH_DOCUMENTS = 48
"""Of the one-epoch study, the first of the shuffled training documents; the other study draws from all of them."""


@dataclass(frozen=True)
class Arm:
    """One way to train; it is run once a seed."""

    name: str
    study: str
    """stability: equal trained tokens; epoch: one pass over a small corpus."""
    rate: float
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """The curriculum's block `curriculum_metrics`; empty for the full length throughout."""


def _ramp(low: int, step: int, **more: Any) -> dict[str, Any]:
    return {
        "schedule_type": "fixed_linear", "min_difficulty": low,
        "schedule_config": {"duration": DURATION, "difficulty_step": step}, **more,
    }  # fmt: skip


SLW = _ramp(SHORTEST, 8, max_difficulty=LENGTH)
TWO_STAGE = {  # the paper's case 16: an eighth of the length in 20,000 of 55,000 steps
    "schedule_type": "fixed_discrete", "min_difficulty": LENGTH // 8, "max_difficulty": LENGTH,
    "schedule_config": {"difficulty": [LENGTH // 8, LENGTH], "max_fraction": [0.36]},
}  # fmt: skip
BATCH_WARMUP = _ramp(2, 2, max_difficulty=ROWS)
MIXED = SLW | {"schedule_type": "mixed"}
STABILITY = (
    Arm("baseline", "stability", HIGH_RATE),
    Arm("slw", "stability", HIGH_RATE, {"seqlen_truncate": SLW}),
    Arm("two_stage", "stability", HIGH_RATE, {"seqlen_truncate": TWO_STAGE}),
    Arm("batch_warmup", "stability", HIGH_RATE, {"batch_size": BATCH_WARMUP}),
    Arm("mixed", "stability", HIGH_RATE, {"seqlen_truncate": MIXED}),
    Arm("low_rate", "stability", LOW_RATE),
    Arm("slw_low_rate", "stability", LOW_RATE, {"seqlen_truncate": SLW}),
    Arm("batch_warmup_low_rate", "stability", LOW_RATE, {"batch_size": BATCH_WARMUP}),  # as many updates as slw
    Arm("mixed_low_rate", "stability", LOW_RATE, {"seqlen_truncate": MIXED}),  # the same
    Arm("highest_rate", "stability", HIGHEST_RATE),
    Arm("slw_highest_rate", "stability", HIGHEST_RATE, {"seqlen_truncate": SLW}),
)
MODES = ("truncate", "reshape", "replay", "tailpack", "revisit")
EPOCH = (
    Arm("full_length", "epoch", LOW_RATE),
    *(Arm(mode, "epoch", LOW_RATE, {f"seqlen_{mode}": SLW}) for mode in MODES),
)
ARMS = STABILITY + EPOCH
FIXED_LOSS = {"stability": 5.75, "epoch": 5.85}
"""Of each study a validation loss that nearly every run comes to."""


def references(study: str) -> dict[str, str]:
    """Of each arm of a study, the arm that has the same learning rate and the full length throughout."""
    mine = [arm for arm in ARMS if arm.study == study]
    return {arm.name: next(a.name for a in mine if not a.metrics and a.rate == arm.rate) for arm in mine}


def settings() -> dict[str, Any]:
    """What the results file says was trained: the configuration of each arm without paths."""
    shown = {}
    for arm in ARMS:
        config = configuration(arm, SEEDS[0], Path(), Path())
        ours = config.pop("megatron_slw")
        kept = {section: ours[section] for section in ("model", "training")}
        shown[f"{arm.study}/{arm.name}"] = config | {"megatron_slw": kept}
    return {"seeds": SEEDS, "vocabulary": VOCABULARY, "epoch_documents": EPOCH_DOCUMENTS, "configurations": shown}


def configuration(arm: Arm, seed: int, data: Path, run: Path) -> dict[str, Any]:
    """The JSON that pretrain_gpt.py takes.

    Args:
        arm: what is trained.
        seed: of the initial values and the order of the samples.
        data: the folder with the datasets train, epoch and valid.
        run: where the run goes.
    """
    epoch = arm.study == "epoch"
    curriculum = {"curriculum_learning": {"enabled": True, "curriculum_metrics": dict(arm.metrics)}}
    length = {"train_epochs": 1} if epoch else {"train_tokens": TRAIN_TOKENS}
    return {
        "train_batch_size": ROWS,
        "train_micro_batch_size_per_gpu": MICRO,
        "gradient_clipping": 1.0,
        "optimizer": {
            "type": "AdamW",
            "params": {"lr": arm.rate, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01},
        },
        **({"data_efficiency": {"data_sampling": curriculum}} if arm.metrics else {}),
        "megatron_slw": {
            "model": {
                "num_layers": 3, "hidden_size": 96, "num_attention_heads": 4, "seq_length": LENGTH,
                "hidden_dropout": 0.0, "attention_dropout": 0.0,
            },
            "data": {
                "path": str(data / ("epoch" if epoch else "train")) + "_text_document",
                "valid_path": str(data / "valid_text_document"),
            },
            "training": {**length, "seed": seed, "lr_warmup_steps": WARMUP_STEPS, "lr_decay_style": "cosine"},
            "evaluation": {"interval": 15, "samples": 128},
            "checkpoint": {"interval": 0},
            "logging": {"directory": str(run), "interval": 50, "tensorboard": False},
        },
    }  # fmt: skip
