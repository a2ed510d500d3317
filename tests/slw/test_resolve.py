"""Durations in tokens and fractions, grids, custom and mixed pacing, and the rows of a batch-size warmup."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_slw.config.errors import ConfigError
from megatron_slw.config.schema import CurriculumConfig, RunConfig
from megatron_slw.slw.compile import compile_plan, plan_of
from megatron_slw.slw.plan import Plan
from megatron_slw.slw.resolve import resolve_schedules
from tests.slw.run_configs import linear, run_config

FULL = 256


def ramp(**changes: Any) -> CurriculumConfig:
    base = linear(8, FULL, 100).model_copy(update={"total_curriculum_step": None})
    return base.model_copy(update=changes)


def resolved(config: RunConfig) -> CurriculumConfig:
    curriculum = resolve_schedules(config, plan_of).curriculum
    assert curriculum is not None
    return curriculum


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["fixed_linear", "fixed_root"]), st.integers(1, 3_000_000), st.integers(1, 64))
def test_a_duration_in_tokens_is_the_first_step_that_has_trained_them(kind: str, tokens: int, rows: int) -> None:
    schedule = ramp(schedule_type=kind, root_degree=2, total_curriculum_tokens=tokens)
    steps = resolved(run_config(rows, FULL, schedule, train_steps=10)).total_curriculum_step
    assert steps is not None

    def trained(total: int) -> int:
        whole = schedule.model_copy(update={"total_curriculum_step": total, "total_curriculum_tokens": None})
        return compile_plan(run_config(rows, FULL, whole, train_steps=total)).tokens_trained

    assert trained(steps) >= tokens
    assert steps == 1 or trained(steps - 1) < tokens


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([0.05, 0.29, 0.3, 0.5, 0.97, 1.0]),
    st.sampled_from(["train_steps", "train_tokens", "train_samples"]),
    st.integers(1, 200_000),
)
def test_a_duration_is_that_share_of_the_steps(duration: float, end: str, amount: int) -> None:
    config = run_config(16, FULL, ramp(duration=duration), **{end: amount})
    steps = resolved(config).total_curriculum_step
    total = compile_plan(config).total_steps
    assert steps is not None
    assert abs(steps - duration * total) <= 1 or steps == 1
    if end == "train_steps" and amount * duration == int(amount * duration):
        assert steps == max(1, round(duration * amount)), "a float's last bit took a step away"


def test_stages_in_fractions_and_tokens() -> None:
    """A quarter on 128, a quarter on 256, then the full length: the fractions count steps, the tokens count tokens."""
    stages = CurriculumConfig(
        schedule_type="fixed_discrete", min_difficulty=128, max_difficulty=1024, difficulty=(128, 256, 1024),
        max_fraction=(0.25, 0.5),
    )  # fmt: skip
    plan = compile_plan(run_config(512, 1024, stages, train_tokens=10**9))
    share = [run.first_step / plan.total_steps for run in plan.runs]
    assert share == pytest.approx([0.0, 0.25, 0.5], abs=1e-3)
    by_tokens = stages.model_copy(update={"max_fraction": None, "max_tokens": (10**8, 3 * 10**8)})
    plan = compile_plan(run_config(512, 1024, by_tokens, train_tokens=10**9))
    ends = [plan.progress_at(run.first_step).tokens for run in plan.runs[1:]]
    assert 10**8 <= ends[0] < 10**8 + 512 * 128 and 3 * 10**8 <= ends[1] < 3 * 10**8 + 512 * 256


def test_the_staged_epoch_is_found_from_fractions() -> None:
    """12.57 million samples in batches of 512 are 24,559 steps: a quarter is 6,139."""
    stages = CurriculumConfig(
        schedule_type="fixed_discrete", min_difficulty=128, max_difficulty=1024, difficulty=(128, 256, 1024),
        max_fraction=(0.25, 0.5),
    )  # fmt: skip
    plan = compile_plan(run_config(512, 1024, stages, train_samples=12_574_161))
    assert plan.total_steps == 24_559
    assert [run.first_step for run in plan.runs] == [0, 6139, 12279]


@pytest.mark.parametrize("cap", [2, 3, 5, 8, 31, 32, 100])
def test_no_more_lengths_than_wanted(cap: int) -> None:
    plan = compile_plan(run_config(4, FULL, ramp(max_distinct_lengths=cap, total_curriculum_step=500), train_steps=600))
    lengths = {run.seq_len for run in plan.runs}
    assert len(lengths) <= cap and max(lengths) == FULL
    assert all(length % 8 == 0 for length in lengths)
    if cap >= 32:
        assert len(lengths) == 32, "coarser than needed"


def test_lengths_suit_sequence_parallelism() -> None:
    config = run_config(4, FULL, ramp(total_curriculum_step=500, difficulty_step=6), train_steps=600)
    split = config.parallel.model_copy(update={"tensor": 4, "sequence_parallel": True})
    lengths = {run.seq_len for run in compile_plan(config.model_copy(update={"parallel": split})).runs}
    assert all(length % 12 == 0 or length == FULL for length in lengths)


@given(st.integers(1, 400))
def test_mixed_has_the_lengths_of_linear_in_another_order(total: int) -> None:
    def shapes(kind: str) -> Plan:
        schedule = ramp(schedule_type=kind, total_curriculum_step=total)
        return compile_plan(run_config(4, FULL, schedule, train_steps=total + 10))

    mixed, straight = shapes("mixed"), shapes("fixed_linear")
    one = [mixed.at(step).seq_len for step in range(total)]
    other = [straight.at(step).seq_len for step in range(total)]
    assert Counter(one) == Counter(other)
    assert mixed.tokens_trained == straight.tokens_trained
    if total > 100:
        assert sum(one[: total // 2]) == pytest.approx(sum(one) / 2, rel=0.2), "the halves differ: not mixed"


def custom(function: str) -> CurriculumConfig:
    return CurriculumConfig(schedule_type="custom", min_difficulty=8, max_difficulty=FULL, function=function)


def test_a_custom_function_decides() -> None:
    plan = compile_plan(run_config(4, FULL, custom("tests.slw.pacing_functions:sawtooth"), train_steps=7))
    assert [plan.at(step).seq_len for step in range(7)] == [8, 8, 256, 8, 8, 256, 8]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("tests.slw.nowhere:f", "cannot be imported"),
        ("tests.slw.pacing_functions:f", "cannot be imported"),
        ("pacing", "cannot be imported"),
        ("tests.slw.pacing_functions:NUMBER", "is no function"),
        ("tests.slw.pacing_functions:too_long", "gives 257 for step 1"),
        ("tests.slw.pacing_functions:a_float", r"gives 8\.0 for step 1"),
        ("tests.slw.pacing_functions:failing", "failed at step 1: RuntimeError"),
    ],
)
def test_a_custom_function_that_does_not_do(function: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compile_plan(run_config(4, FULL, custom(function), train_steps=7))


def test_rows_grow_in_place_of_lengths() -> None:
    """The paper's case 17: 128 to 4096 rows over 45,000 steps, then 157 B tokens are full."""
    warmup = linear(128, 4096, 45_000, 128).model_copy(update={"mode": "batch_size"})
    config = run_config(4096, 1024, train_tokens=157_286_400_000).model_copy(update={"batch_warmup": warmup})
    plan = compile_plan(config)
    assert plan.runs[0] == (0, 1024, 128) and plan.runs[-1].rows == 4096
    rows = sum(plan.at(step).rows for step in range(0, 45_000, 100)) / 450
    assert rows == pytest.approx((128 + 4096) / 2, rel=0.04)
    assert plan.at(50_000).samples_before == plan.at(50_000).tokens_before // 1024
    # Rounded down to multiples of 128 the rows average 2048 over the ramp: 22,500 full steps, and 15,000 are left.
    assert plan.total_steps == 60_000
