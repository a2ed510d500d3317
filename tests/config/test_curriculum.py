"""The curriculum settings beyond DeepSpeed's own: presets, durations, a batch-size metric, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_slw.config.curriculum_rules import warnings
from megatron_slw.config.errors import ConfigError
from megatron_slw.config.load import resolve, with_train_samples
from megatron_slw.config.presets import BATCH_PRESETS, PRESETS
from megatron_slw.config.schema import RunConfig
from megatron_slw.slw.compile import compile_plan

WORLD = 8
LINEAR: dict[str, Any] = {
    "min_difficulty": 64, "max_difficulty": 1024, "schedule_type": "fixed_linear",
    "schedule_config": {"total_curriculum_step": 2000, "difficulty_step": 8},
}  # fmt: skip
ROWS: dict[str, Any] = {
    "min_difficulty": 16, "max_difficulty": 64, "schedule_type": "fixed_linear",
    "schedule_config": {"total_curriculum_step": 100, "difficulty_step": 16},
}  # fmt: skip


def read(good: dict[str, Any], metrics: dict[str, Any]) -> RunConfig:
    good["data_efficiency"]["data_sampling"]["curriculum_learning"]["curriculum_metrics"] = metrics
    return resolve(good, WORLD)


def metric(schedule_type: str, **schedule_config: Any) -> dict[str, Any]:
    return LINEAR | {"schedule_type": schedule_type, "schedule_config": schedule_config}


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_of_lengths_compiles(good: dict[str, Any], name: str) -> None:
    config = read(good, {"seqlen_truncate": {"preset": name}})
    plan = compile_plan(config)
    assert plan.runs[0].seq_len < 1024 or config.curriculum.schedule_type == "mixed"
    assert config.curriculum.max_difficulty == 1024


@pytest.mark.parametrize("name", BATCH_PRESETS)
def test_every_preset_of_rows_compiles(good: dict[str, Any], name: str) -> None:
    good["train_batch_size"] = 4096
    config = read(good, {"batch_size": {"preset": name}})
    assert config.curriculum is None
    assert compile_plan(config).runs[0].rows == config.batch_warmup.min_difficulty < 4096


def test_what_the_block_says_goes_before_its_preset(good: dict[str, Any]) -> None:
    block = {"preset": "slw_1.5b_bsz4k", "min_difficulty": 8, "schedule_config": {"duration": 0.5}}
    curriculum = read(good, {"seqlen_replay": block}).curriculum
    assert (curriculum.mode, curriculum.min_difficulty, curriculum.difficulty_step) == ("seqlen_replay", 8, 8)
    assert (curriculum.duration, curriculum.total_curriculum_step) == (0.5, None)


def test_a_preset_in_the_legacy_block(good: dict[str, Any]) -> None:
    del good["data_efficiency"]
    good["curriculum_learning"] = {"enabled": True, "curriculum_type": "seqlen", "preset": "slw_117m_bsz4k"}
    assert resolve(good, WORLD).curriculum.total_curriculum_step == 20_000


def test_lengths_and_rows_together_are_warned_of(good: dict[str, Any]) -> None:
    assert warnings(read(good, {"seqlen_truncate": LINEAR})) == warnings(read(good, {"batch_size": ROWS})) == []
    (text,) = warnings(read(good, {"seqlen_truncate": LINEAR, "batch_size": ROWS}))
    assert "both on" in text and "remove the batch_size metric" in text


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"seqlen_truncate": {"preset": "slw_7b"}}, r"preset must be slw_117m_bsz512, .*mixed, not \"slw_7b\""),
        ({"batch_size": {"preset": "slw"}}, r"batch_size\.preset must be gpt3 or bsz_warmup_1\.5b_bsz4k"),
        (
            {"seqlen_truncate": metric("fixed_linear", difficulty_step=8, duration=0.5, total_curriculum_step=9)},
            r"exactly one of .*There is total_curriculum_step and duration",
        ),
        ({"seqlen_truncate": metric("fixed_linear", difficulty_step=8, duration=0)}, r"duration must be greater th"),
        ({"seqlen_truncate": metric("fixed_linear", difficulty_step=8, duration=1.5)}, r"duration must be .*1\.5"),
        ({"seqlen_truncate": metric("fixed_root", difficulty_step=8, duration=0.5)}, r"root_degree is missing"),
        ({"seqlen_truncate": metric("fixed_discrete", difficulty=[8, 1024])}, r"one of max_step, max_tokens or "),
        (
            {"seqlen_truncate": metric("fixed_discrete", difficulty=[8, 64, 1024], max_fraction=[0.5, 0.25])},
            r"max_fraction must increase, it has 0\.5 before 0\.25",
        ),
        ({"seqlen_truncate": metric("custom")}, r"function is missing"),
        ({"seqlen_truncate": metric("loss_adaptive", difficulty_step=8)}, r"patience is missing"),
        (
            {"seqlen_truncate": metric("fixed_linear", difficulty_step=8, duration=0.5, max_distinct_lengths=1)},
            r"max_distinct_lengths must be at least 2",
        ),
        ({"batch_size": ROWS | {"schedule_type": "mixed"}}, r"must be fixed_linear, fixed_root or fixed_discrete"),
        ({"batch_size": ROWS | {"max_difficulty": 128}}, r"max_difficulty 128 is more than train_batch_size 64\."),
        ({"batch_size": ROWS | {"max_difficulty": 32}}, r"must end at the full batch"),
        (
            {"batch_size": ROWS | {"schedule_config": {"total_curriculum_step": 9, "difficulty_step": 3}}},
            r"difficulty_step 3 is not divisible by data-parallel 2",
        ),
        (
            {"seqlen_truncate": metric("fixed_linear", difficulty_step=8, duration=0.5), "batch_size": ROWS},
            r"duration depends on the rest of the run, .*Give total_curriculum_step",
        ),
    ],
)  # fmt: skip
def test_refused(good: dict[str, Any], metrics: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read(good, metrics)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_an_adaptive_schedule_needs_an_end_of_the_decay(good: dict[str, Any]) -> None:
    adaptive = {"seqlen_truncate": metric("loss_adaptive", difficulty_step=8, patience=50)}
    assert read(good, adaptive).curriculum.smoothing == 0.98
    good["megatron_slw"]["training"] = {"train_steps": 100}
    with pytest.raises(ConfigError, match="does not know in advance. Give training.lr_decay_tokens"):
        read(good, adaptive)
    good["megatron_slw"]["training"]["lr_decay_tokens"] = 10**9
    read(good, adaptive)


def test_epochs_become_samples(good: dict[str, Any]) -> None:
    good["megatron_slw"]["training"] = {"train_epochs": 3}
    config = with_train_samples(resolve(good, WORLD), 1000)
    assert (config.training.train_samples, config.training.train_epochs) == (3000, None)
