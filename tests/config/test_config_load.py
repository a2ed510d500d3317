"""One JSON file to one RunConfig: what is read, derived, removed and kept."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from megatron_slw.config import ConfigError, RunConfig, load_config, to_json, with_vocab_size
from megatron_slw.config.load import resolve

LEGACY = {
    "enabled": True,
    "curriculum_type": "seqlen",
    "min_difficulty": 64,
    "max_difficulty": 1024,
    "schedule_type": "fixed_linear",
    "schedule_config": {"total_curriculum_step": 2000, "difficulty_step": 8},
}


def legacy_form(good: dict[str, Any]) -> dict[str, Any]:
    tree = {name: value for name, value in good.items() if name != "data_efficiency"}
    return tree | {"curriculum_learning": copy.deepcopy(LEGACY)}


def write(folder: Path, tree: dict[str, Any]) -> Path:
    path = folder / "ds_slw.json"
    path.write_text(json.dumps(tree), encoding="utf-8")
    return path


def test_reads_every_part(tmp_path: Path, good: dict[str, Any]) -> None:
    config = load_config(write(tmp_path, good), world_size=8)
    assert (config.train_batch_size, config.micro_batch_size, config.gradient_accumulation_steps) == (
        64,
        4,
        8,
    )
    assert (config.data_parallel_size, config.precision, config.zero_stage) == (2, "bf16", 1)
    assert config.gradient_clipping == 1.0
    assert (config.optimizer.type, config.optimizer.lr, config.optimizer.betas) == (
        "AdamW",
        6e-4,
        (0.9, 0.95),
    )
    assert config.curriculum is not None
    assert (config.curriculum.min_difficulty, config.curriculum.total_curriculum_step) == (64, 2000)
    assert config.training.lr_warmup_steps == 100 and config.evaluation.interval == 1000
    assert config.deepspeed == {
        "zero_optimization": {"stage": 1},
        "bf16": {"enabled": True},
        "steps_per_print": 100,
    }


def test_both_curriculum_forms_give_the_same_run(tmp_path: Path, good: dict[str, Any]) -> None:
    tree = legacy_form(good)
    assert resolve(tree, 8) == resolve(good, 8)
    assert "curriculum_learning" in tree  # the caller's dict is left alone


@pytest.mark.parametrize("null", ["curriculum_learning", "data_efficiency"])
def test_no_curriculum_key_reaches_deepspeed(null: str, good: dict[str, Any]) -> None:
    tree = good
    tree["data_efficiency"]["data_sampling"]["curriculum_learning"]["enabled"] = False
    tree[null] = None
    config = resolve(tree, 8)
    assert config.curriculum is None
    assert set(config.deepspeed) == {"zero_optimization", "bf16", "steps_per_print"}


def test_only_the_innermost_enabled_counts(good: dict[str, Any]) -> None:
    tree = good
    tree["data_efficiency"]["enabled"] = False
    tree["data_efficiency"]["data_sampling"]["enabled"] = False
    assert resolve(tree, 8).curriculum is not None


def test_a_disabled_block_is_not_read(good: dict[str, Any]) -> None:
    tree = legacy_form(good)
    tree["curriculum_learning"] = {"enabled": False, "min_difficulty": -1}
    assert resolve(tree, 8).curriculum is None


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"train_batch_size": 64}, (64, 32, 1)),
        ({"train_micro_batch_size_per_gpu": 4}, (8, 4, 1)),
        ({"train_batch_size": 64, "gradient_accumulation_steps": 4}, (64, 8, 4)),
        ({"train_batch_size": 64, "train_micro_batch_size_per_gpu": 4}, (64, 4, 8)),
        ({"train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 4}, (32, 4, 4)),
        (
            {"train_batch_size": 64, "train_micro_batch_size_per_gpu": 8, "gradient_accumulation_steps": 4},
            (64, 8, 4),
        ),
    ],
)
def test_batch_arithmetic(
    given: dict[str, int], expected: tuple[int, int, int], good: dict[str, Any]
) -> None:
    tree = {key: value for key, value in good.items() if "batch" not in key} | given
    config = resolve(tree, 8)
    assert (config.train_batch_size, config.micro_batch_size, config.gradient_accumulation_steps) == expected


@pytest.mark.parametrize(
    ("block", "kind", "weight_decay"),
    [
        ({"type": "AdamW", "params": {"lr": 1e-3}}, "AdamW", 0.01),
        ({"type": "Adam", "params": {"lr": 1e-3, "torch_adam": True, "weight_decay": 0.1}}, "AdamW", 0.1),
        ({"type": "Adam", "params": {"lr": 1e-3, "adam_w_mode": False}}, "Adam", 0.0),
        ({"type": "adamw", "params": {"lr": 1, "adam_w_mode": True}}, "AdamW", 0.01),
        ({"type": "SGD", "params": {"lr": 0.1, "momentum": 0.9}}, "SGD", 0.0),
    ],
)
def test_optimizer(block: dict[str, Any], kind: str, weight_decay: float, good: dict[str, Any]) -> None:
    optimizer = resolve(good | {"optimizer": block}, 8).optimizer
    assert (optimizer.type, optimizer.weight_decay) == (kind, weight_decay)


def test_overrides(tmp_path: Path, good: dict[str, Any]) -> None:
    overrides = [
        "--model.num_layers=24",
        "train_batch_size=128",
        "zero_optimization.stage=0",
        "--bf16.enabled=false",
        "--logging.directory",
        "runs/y",
        "--curriculum.min_difficulty=8",
        "megatron_slw.parallel.pipeline=1",
        "training.train_tokens=null",
        "training.train_steps=3000",
        "gradient_clipping=0",
        "evaluation.interval=null",
        "optimizer.params.betas=null",
    ]
    config = load_config(write(tmp_path, good), overrides, world_size=8)
    assert (config.model.num_layers, config.train_batch_size, config.zero_stage) == (24, 128, 0)
    assert (config.precision, config.logging.directory, config.gradient_clipping) == ("fp32", "runs/y", 0.0)
    assert (config.training.train_tokens, config.training.train_steps) == (None, 3000)
    assert config.curriculum is not None and config.curriculum.min_difficulty == 8
    assert config.data_parallel_size == 4
    assert (config.evaluation.interval, config.optimizer.betas) == (1000, (0.9, 0.999))  # null: the default


@pytest.mark.parametrize("legacy", [False, True])
def test_curriculum_overrides_find_the_block(tmp_path: Path, legacy: bool, good: dict[str, Any]) -> None:
    path = write(tmp_path, legacy_form(good) if legacy else good)
    config = load_config(path, ["curriculum.total_curriculum_step=7", "curriculum.max_difficulty=1024"], 8)
    assert config.curriculum is not None and config.curriculum.total_curriculum_step == 7
    assert load_config(path, ["curriculum.enabled=false"], 8).curriculum is None


def test_the_message_says_where_the_value_came_from(tmp_path: Path, good: dict[str, Any]) -> None:
    path = write(tmp_path, good)
    with pytest.raises(ConfigError, match=r"^command line: megatron_slw\.model\.num_layer is not a setting"):
        load_config(path, ["--model.num_layer=24"], world_size=8)
    with pytest.raises(ConfigError, match=rf"^{path}: 6 ranks cannot hold"):
        load_config(path, ["--model.num_layers=24"], world_size=6)


def test_json_round_trip(good: dict[str, Any]) -> None:
    config = resolve(good, 8)
    assert RunConfig.model_validate(json.loads(json.dumps(to_json(config)))) == config


def test_vocabulary_comes_from_the_dataset(good: dict[str, Any]) -> None:
    config = resolve(good, 8)
    assert config.model.vocab_size is None
    known = with_vocab_size(config, 50257)
    assert known.model.vocab_size == 50257 and known.model.padded_vocab_size == 50304
    assert with_vocab_size(known, 50257) is known
    for other in (50256, 50300):
        with pytest.raises(
            ConfigError, match=rf"vocab_size 50257 is not the {other} of the dataset data/text"
        ):
            with_vocab_size(known, other)


def test_tensor_ranks_may_hold_unequal_parts_of_the_vocabulary(good: dict[str, Any]) -> None:
    tree = good
    tree["megatron_slw"]["model"] |= {"num_attention_heads": 3, "hidden_size": 768, "ffn_hidden_size": 3072}
    tree["megatron_slw"]["parallel"] = {"tensor": 3}
    config = resolve(tree | {"train_batch_size": 4}, 3)
    assert with_vocab_size(config, 100).model.padded_vocab_size == 128
