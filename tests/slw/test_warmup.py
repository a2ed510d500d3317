"""The same JSON in another loop: the lengths are the plan's, and Composer's faults are not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_slw.config.errors import ConfigError
from megatron_slw.config.load import load_config, resolve
from megatron_slw.slw.compile import compile_plan
from megatron_slw.slw.warmup import SequenceLengthWarmup

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def metric(mode: str = "seqlen_truncate", kind: str = "fixed_linear", **inner: Any) -> dict[str, Any]:
    """A curriculum from 8 to 1024 in DeepSpeed's new form."""
    grid = {} if "difficulty" in inner or "function" in inner else {"difficulty_step": 8}
    block = {"min_difficulty": 8, "max_difficulty": 1024, "schedule_type": kind, "schedule_config": grid | inner}
    learning = {"enabled": True, "curriculum_metrics": {mode: block}}
    return {"data_efficiency": {"data_sampling": {"curriculum_learning": learning}}}


def legacy(low: int, high: int, **inner: Any) -> dict[str, Any]:
    """The legacy block without its outer key."""
    ends = {"min_difficulty": low, "max_difficulty": high}
    return {
        "enabled": True,
        "curriculum_type": "seqlen",
        **ends,
        "schedule_type": "fixed_linear",
        "schedule_config": {"difficulty_step": 8, **inner},
    }


def test_a_warmup_ends_at_its_duration_not_before() -> None:
    """Composer's whole number of steps per increment ends 30 % of 1000 steps at step 254."""
    warmup = SequenceLengthWarmup.from_config(legacy(8, 1024, duration=0.3), 1000)
    lengths = [warmup.seq_len(step) for step in range(1000)]
    assert lengths.index(1024) == 299 and lengths[:299] == sorted(lengths[:299]) and lengths[298] == 1016
    assert set(lengths[299:]) == {1024} and lengths[0] == 8


def test_a_warmup_from_the_full_length_to_itself() -> None:
    """Composer divides by zero."""
    warmup = SequenceLengthWarmup.from_config(legacy(64, 64, duration=0.3), 100, rows=2)
    assert {warmup.seq_len(step) for step in range(100)} == {64} and warmup.tokens(100) == 100 * 2 * 64


@pytest.mark.parametrize("duration", [0, 0.0])
def test_a_duration_of_nothing_is_refused_in_a_sentence(duration: float) -> None:
    """Composer divides by zero."""
    with pytest.raises(ConfigError, match="schedule_config.duration must be greater than 0.0, not 0"):
        SequenceLengthWarmup.from_config(legacy(8, 1024, duration=duration), 1000)


def test_fewer_steps_than_increments() -> None:
    """Composer divides by zero; here 127 increments go in 30 steps, several at a time."""
    warmup = SequenceLengthWarmup.from_config(legacy(8, 1024, duration=0.3), 100)
    lengths = [warmup.seq_len(step) for step in range(31)]
    assert lengths[28] < 1024 and lengths[29:] == [1024, 1024]
    assert all(length % 8 == 0 for length in lengths) and len(set(lengths)) == 30


SCHEDULES: list[dict[str, Any]] = [
    metric(total_curriculum_step=37),
    metric(total_curriculum_tokens=100_000),
    metric(duration=0.4),
    metric(kind="fixed_root", root_degree=2, total_curriculum_step=50),
    metric(kind="mixed", duration=0.5),
    metric(kind="fixed_discrete", difficulty=[128, 64, 1024], max_step=[10, 30]),
    metric(kind="fixed_discrete", difficulty=[128, 256, 1024], max_tokens=[20_000, 90_000]),
    metric(kind="fixed_discrete", difficulty=[128, 256, 1024], max_fraction=[0.25, 0.5]),
    metric(total_curriculum_step=60, max_distinct_lengths=5),
    {"curriculum_learning": legacy(8, 1024, total_curriculum_step=20)},
    {},
]


def configuration(curriculum: dict[str, Any], **training: int) -> dict[str, Any]:
    """A whole one."""
    return curriculum | {
        "train_batch_size": 4,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3}},
        "megatron_slw": {
            "model": {"num_layers": 2, "hidden_size": 16, "num_attention_heads": 4, "seq_length": 1024},
            "parallel": {"tensor": 4, "sequence_parallel": True},
            "data": {"path": "data"},
            "training": training,
            "logging": {"directory": "run"},
        },
    }


@pytest.mark.parametrize("end", [{"train_steps": 120}, {"train_tokens": 300_000}, {"train_samples": 500}])
@pytest.mark.parametrize("curriculum", SCHEDULES)
def test_lengths_and_tokens_are_those_of_the_trainer(curriculum: dict[str, Any], end: dict[str, int]) -> None:
    tree = configuration(curriculum, **end)
    plan = compile_plan(resolve(tree, 4))
    warmup = SequenceLengthWarmup.from_config(tree)
    assert (warmup.total_steps, warmup.full_length) == (plan.total_steps, 1024)
    for step in range(plan.total_steps):
        assert warmup.seq_len(step) == plan.at(step).seq_len
        assert warmup.tokens(step) == plan.progress_at(step).tokens
    assert warmup.tokens(plan.total_steps) == plan.tokens_trained


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.json")), ids=lambda path: path.stem)
def test_the_examples_are_read_as_they_are(path: Path) -> None:
    plan = compile_plan(load_config(path, world_size=64))
    warmup = SequenceLengthWarmup.from_config(path)
    for step in [*range(0, plan.total_steps, 997), plan.total_steps - 1]:
        assert warmup.seq_len(step) == plan.at(step).seq_len and warmup.tokens(step) == plan.progress_at(step).tokens


def test_a_curriculum_by_itself_in_every_form(tmp_path: Path) -> None:
    block = legacy(8, 256, total_curriculum_step=40)
    shared = {key: value for key, value in block.items() if key not in ("enabled", "curriculum_type")}
    bare = {"enabled": True, "curriculum_metrics": {"seqlen_truncate": shared}}
    file = tmp_path / "curriculum.json"
    file.write_text(json.dumps(bare))
    forms: list[Any] = [
        block,
        {"curriculum_learning": block},
        bare,
        {"data_efficiency": {"data_sampling": {"curriculum_learning": bare}}},
        {"train_batch_size": "auto", "zero_optimization": {"stage": 1}, "curriculum_learning": block},
        file,
        str(file),
    ]
    for form in forms:
        warmup = SequenceLengthWarmup.from_config(form, 60)
        assert [warmup.seq_len(step) for step in (0, 20, 39, 59)] == [8, 136, 256, 256], form
        assert warmup.full_length == 256


def test_the_caller_s_dict_is_left_as_it_is() -> None:
    tree = configuration(metric(duration=0.5), train_steps=10)
    before = json.dumps(tree)
    SequenceLengthWarmup.from_config(tree)
    assert json.dumps(tree) == before


def test_the_loop_s_own_steps_and_rows_go_before_the_file_s() -> None:
    warmup = SequenceLengthWarmup.from_config(configuration(metric(duration=0.5), train_tokens=10**6), 40, rows=16)
    assert warmup.total_steps == 40 and warmup.seq_len(19) == 1024 > warmup.seq_len(18)
    assert warmup.tokens(40) == 16 * sum(warmup.seq_len(step) for step in range(40))


def test_a_loop_that_goes_on_beyond_its_steps_goes_on_at_the_full_length() -> None:
    assert SequenceLengthWarmup.from_config(metric(duration=1.0), 40).seq_len(1000) == 1024


REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (metric(total_curriculum_step=9), {}, "total_steps must be given"),
    (metric(total_curriculum_step=9), {"total_steps": 0}, "total_steps must lie between 1"),
    (metric(total_curriculum_step=9), {"total_steps": 9, "rows": 0}, "rows must lie between 1"),
    (metric(total_curriculum_tokens=9), {"total_steps": 9}, "total_curriculum_tokens counts tokens: pass rows"),
    (metric(total_curriculum_step=9), {"total_steps": 9, "seq_length": 2048}, "max_difficulty 1024 is less than"),
    (metric(total_curriculum_step=9), {"total_steps": 9, "seq_length": 512}, "max_difficulty 1024 is more than"),
    (metric("seqlen_replay", total_curriculum_step=9), {"total_steps": 9}, "seqlen_replay brings back"),
    (metric("seqlen_reshape", total_curriculum_tokens=9), {"total_steps": 9, "rows": 2}, "re-chunked trains all"),
    (metric(kind="loss_adaptive", patience=3), {"total_steps": 9}, "no function of the step"),
    ({"train_batch_size": 8}, {"total_steps": 9}, "there is no curriculum"),
    ({"megatron_slw": {}}, {"total_steps": 9}, "seq_length must be given"),
    ({"megatron_slw": {"training": {"train_step": 9}}}, {}, "Did you mean train_steps"),
    ({"megatron_slw": {"training": {"train_epochs": 1}}}, {}, "total_steps must be given"),
    (legacy(8, 1024, total_step=9), {"total_steps": 9}, "total_step is not a setting"),
]


@pytest.mark.parametrize(("source", "arguments", "message"), REFUSED)
def test_what_another_loop_cannot_follow_is_refused(
    source: dict[str, Any], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        SequenceLengthWarmup.from_config(source, **arguments)


def test_a_warmup_of_the_rows_is_refused() -> None:
    source = metric("batch_size", total_curriculum_step=9)
    source["data_efficiency"]["data_sampling"]["curriculum_learning"]["curriculum_metrics"]["batch_size"].update(
        min_difficulty=8, max_difficulty=16
    )
    with pytest.raises(ConfigError, match="loop's loader decides"):
        SequenceLengthWarmup.from_config(source, 9, seq_length=64, rows=16)


def test_errors_of_a_file_begin_with_its_name(tmp_path: Path) -> None:
    file = tmp_path / "slw.json"
    file.write_text("{}")
    with pytest.raises(ConfigError, match=f"^{file}: there is no curriculum"):
        SequenceLengthWarmup.from_config(file, 9)


def test_batches_of_one_step_have_one_length_and_a_state_goes_on() -> None:
    """Gradient accumulation: the clock is the optimizer's step, not the batch."""
    warmup = SequenceLengthWarmup.from_config(legacy(8, 64, total_curriculum_step=7), 10)
    batch = (torch.zeros(2, 64), torch.zeros(2))
    lengths = []
    for _ in range(4):
        lengths += [warmup(batch)[0].shape[1] for _micro_batch in range(2)]
        warmup.advance()
    assert lengths == [16, 16, 24, 24, 32, 32, 40, 40]
    resumed = SequenceLengthWarmup.from_config(legacy(8, 64, total_curriculum_step=7), 10)
    resumed.load_state_dict(json.loads(json.dumps(warmup.state_dict())))
    assert resumed(batch)[0].shape[1] == warmup(batch, 4)[0].shape[1] == 48


@pytest.mark.parametrize("state", [{}, {"step": -1}, {"step": 1.0}, {"step": True}, {"step": 1, "length": 8}])
def test_a_state_that_is_none_is_refused(state: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="a warmup's state"):
        SequenceLengthWarmup.from_config(legacy(8, 64, duration=0.5), 10).load_state_dict(state)


def test_re_chunking_keeps_all_tokens_of_every_step() -> None:
    warmup = SequenceLengthWarmup.from_config(metric("seqlen_reshape", duration=0.5), 20, rows=2)
    tokens = torch.arange(2 * 1025).view(2, 1025)
    for step in range(20):
        _, labels = warmup((tokens[:, :-1], tokens[:, 1:]), step)
        assert labels.shape[1] == warmup.seq_len(step) and (labels != -100).sum() == 2 * 1024
    assert warmup.tokens(20) == 20 * 2 * 1024


def test_options_of_the_cut_are_passed_on() -> None:
    source = legacy(8, 64, duration=0.5)
    warmup = SequenceLengthWarmup.from_config(source, 10, preserve_end_of_sequence=True)
    (cut,) = warmup((torch.arange(64)[None],), 0)
    assert cut[0, -1] == 63 and cut.shape[1] < 64


def test_tokens_that_cannot_be_counted_are_refused() -> None:
    with pytest.raises(ValueError, match="pass rows"):
        SequenceLengthWarmup.from_config(legacy(8, 64, duration=0.5), 10).tokens(1)
    with pytest.raises(ValueError, match="has 10 steps"):
        SequenceLengthWarmup.from_config(legacy(8, 64, duration=0.5), 10, rows=2).tokens(11)
