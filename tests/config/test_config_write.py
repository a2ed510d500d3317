"""A resolved configuration written as a file is read as the same configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_slw.config.load import load_config, resolve
from megatron_slw.config.write import to_tree

ROOT = Path(__file__).resolve().parents[2]
SECTIONS: dict[str, Any] = {
    "model": {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "seq_length": 64},
    "data": {"path": [0.3, "a", 0.7, "b"]},
    "training": {"train_steps": 1000, "lr_warmup_steps": 3, "min_lr": 1e-6, "lr_decay_tokens": 90_000},
    "logging": {"directory": "runs/x"},
}
ADAMW: dict[str, Any] = {"type": "AdamW", "params": {"lr": 1e-3, "betas": [0.9, 0.95]}}
SCHEDULES: dict[str, dict[str, Any]] = {
    "fixed_linear": {"total_curriculum_step": 100, "difficulty_step": 8},
    "fixed_root": {"total_curriculum_tokens": 5000, "difficulty_step": 8, "root_degree": 2},
    "fixed_discrete": {"difficulty": [8, 64], "max_step": [5]},
    "mixed": {"duration": 0.3, "difficulty_step": 8, "max_distinct_lengths": 4},
    "loss_adaptive": {"difficulty_step": 8, "patience": 5, "smoothing": 0.9},
    "custom": {"function": "math:floor"},
}


def curriculum(**metrics: Any) -> dict[str, Any]:
    block = {"enabled": True, "curriculum_metrics": metrics}
    return {"data_efficiency": {"data_sampling": {"curriculum_learning": block}}}


def metric(schedule_type: str, low: int, high: int, **settings: Any) -> dict[str, Any]:
    top = {"min_difficulty": low, "max_difficulty": high, "schedule_type": schedule_type}
    return {**top, "schedule_config": settings}


TREES: dict[str, dict[str, Any]] = {
    "plain": {"optimizer": ADAMW},
    "Adam with coupled decay": {
        "optimizer": {"type": "Adam", "params": {"lr": 1e-3, "adam_w_mode": False, "weight_decay": 0.1}}
    },
    "DeepSpeed's Adam": {"optimizer": {"type": "Adam", "params": {"lr": 1e-3}}},
    "SGD": {"optimizer": {"type": "SGD", "params": {"lr": 1e-3, "momentum": 0.9}}},
    "ZeRO and bf16": {"optimizer": ADAMW, "zero_optimization": {"stage": 2}, "bf16": {"enabled": True}},
    "no clipping": {"optimizer": ADAMW, "gradient_clipping": 0.0},
    "legacy curriculum": {
        "optimizer": ADAMW,
        "curriculum_learning": {
            "enabled": True, "curriculum_type": "seqlen", **metric("fixed_linear", 8, 64, **SCHEDULES["fixed_linear"])
        },
    },
    "preset": {"optimizer": ADAMW, **curriculum(seqlen_truncate={"preset": "slw", "min_difficulty": 8})},
    "rows": {
        "optimizer": ADAMW,
        **curriculum(batch_size=metric("fixed_discrete", 2, 8, difficulty=[2, 8], max_step=[5])),
    },
    **{
        name: {"optimizer": ADAMW, **curriculum(seqlen_reshape=metric(name, 8, 64, **settings))}
        for name, settings in SCHEDULES.items()
    },
}  # fmt: skip


@pytest.mark.parametrize("case", TREES)
def test_what_is_written_is_read_as_the_same(case: str) -> None:
    tree = {"train_batch_size": 8, "train_micro_batch_size_per_gpu": 2, "megatron_slw": SECTIONS, **TREES[case]}
    config = resolve(tree)
    assert resolve(json.loads(json.dumps(to_tree(config)))) == config


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.json")), ids=lambda path: path.name)
def test_examples_are_written_as_they_were(path: Path) -> None:
    config = load_config(path, (), 64)
    assert resolve(json.loads(json.dumps(to_tree(config))), 64) == config


def test_the_file_describes_the_run_on_other_ranks() -> None:
    tree = {"train_batch_size": 8, "train_micro_batch_size_per_gpu": 2, "megatron_slw": SECTIONS, "optimizer": ADAMW}
    assert resolve(to_tree(resolve(tree)), 4).gradient_accumulation_steps == 1
