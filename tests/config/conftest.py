"""A configuration that is right, for the tests to change."""

from __future__ import annotations

import copy
from typing import Any

import pytest

GOOD: dict[str, Any] = {
    "train_batch_size": 64,
    "train_micro_batch_size_per_gpu": 4,
    "zero_optimization": {"stage": 1},
    "bf16": {"enabled": True},
    "optimizer": {"type": "AdamW", "params": {"lr": 6e-4, "betas": [0.9, 0.95], "weight_decay": 0.1}},
    "steps_per_print": 100,
    "data_efficiency": {
        "enabled": True,
        "seed": 1234,
        "data_sampling": {
            "enabled": True,
            "num_workers": 0,
            "curriculum_learning": {
                "enabled": True,
                "data_cluster_path": "unused",
                "curriculum_metrics": {
                    "seqlen_truncate": {
                        "index_to_sample_path": "dummy",
                        "index_to_metric_path": "dummy",
                        "difficulty_type": "value",
                        "clustering_type": "single_cluster",
                        "min_difficulty": 64,
                        "max_difficulty": 1024,
                        "schedule_type": "fixed_linear",
                        "schedule_config": {"total_curriculum_step": 2000, "difficulty_step": 8},
                    }
                },
            },
        },
    },
    "megatron_slw": {
        "model": {"num_layers": 12, "hidden_size": 768, "num_attention_heads": 12, "seq_length": 1024},
        "parallel": {"tensor": 2, "pipeline": 2},
        "data": {"path": "data/text_document"},
        "training": {"train_tokens": 1_000_000_000, "lr_warmup_steps": 100},
        "logging": {"directory": "runs/x"},
    },
}


@pytest.fixture
def good() -> dict[str, Any]:
    """A fresh copy of the parsed JSON of a good configuration for 8 ranks (tensor 2, pipeline 2, data 2)."""
    return copy.deepcopy(GOOD)
