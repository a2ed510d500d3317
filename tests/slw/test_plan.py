"""The compiled plan: the paper's step counts, sums against a walk over every step, and strict reading."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_slw.config.errors import ConfigError
from megatron_slw.config.schema import CurriculumConfig
from megatron_slw.progress import Progress
from megatron_slw.slw import schedule
from megatron_slw.slw.compile import compile_plan
from megatron_slw.slw.plan import BatchStep, Plan, Run
from megatron_slw.slw.schedule import difficulty_at
from tests.slw.run_configs import linear, run_config

PAPER_TOKENS = 157_286_400_000


@pytest.mark.parametrize(
    ("case", "rows", "full", "low", "duration", "steps", "discarded_billions"),
    [
        (3, 512, 1024, 8, 60_000, 330_000, 15.7),
        (6, 4096, 1024, 8, 20_000, 47_500, 41.9),
        (9, 512, 2048, 8, 110_000, 205_000, 57.7),
        (12, 512, 1024, 64, 270_000, 427_617, 66.9),
        (15, 4096, 1024, 64, 45_000, 58_769, 89.2),
    ],
)
def test_golden_step_counts_of_the_paper(
    case: int, rows: int, full: int, low: int, duration: int, steps: int, discarded_billions: float
) -> None:
    plan = compile_plan(run_config(rows, full, linear(low, full, duration), train_tokens=PAPER_TOKENS))
    assert plan.total_steps == steps
    assert round(plan.tokens_discarded / 1e9, 1) == discarded_billions
    assert plan.progress_at(steps - 1).tokens < PAPER_TOKENS <= plan.tokens_trained
    assert len(plan.runs) == (full - low) // 8 + 1


def test_compiling_does_not_walk_over_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluations = 0
    ramp = schedule._ramp

    def counted(curriculum: CurriculumConfig, t: int) -> int:
        nonlocal evaluations
        evaluations += 1
        return ramp(curriculum, t)

    monkeypatch.setattr(schedule, "_ramp", counted)
    plan = compile_plan(run_config(512, 1024, linear(64, 1024, 270_000), train_tokens=PAPER_TOKENS))
    assert len(plan.runs) == 121
    assert evaluations < 40 * len(plan.runs) < plan.total_steps


@st.composite
def drawn_curricula(draw: st.DrawFn) -> CurriculumConfig | None:
    kind = draw(st.integers(0, 3))
    if kind == 0:
        return None
    if kind == 1:
        ends = sorted(draw(st.sets(st.integers(1, 50), min_size=1, max_size=5)))
        sizes = st.lists(st.integers(1, 64), min_size=len(ends) + 1, max_size=len(ends) + 1)
        return CurriculumConfig(
            schedule_type="fixed_discrete",
            min_difficulty=1,
            max_difficulty=64,
            difficulty=tuple(draw(sizes)),
            max_step=tuple(ends),
        )
    low = draw(st.integers(1, 64))
    return CurriculumConfig(
        schedule_type="fixed_linear" if kind == 2 else "fixed_root",
        min_difficulty=low,
        max_difficulty=draw(st.integers(low, 64)),
        total_curriculum_step=draw(st.integers(1, 80)),
        difficulty_step=draw(st.sampled_from([1, 3, 8, 16])),
        root_degree=draw(st.integers(1, 4)),
    )


@settings(max_examples=200, deadline=None)
@given(drawn_curricula(), st.integers(1, 9), st.integers(1, 120))
def test_plan_by_steps_equals_a_walk(
    curriculum: CurriculumConfig | None, rows: int, total_steps: int
) -> None:
    plan = compile_plan(run_config(rows, 64, curriculum, train_steps=total_steps))
    assert plan.total_steps == total_steps
    tokens = 0
    for step in range(total_steps):
        length = difficulty_at(curriculum, 64, step + 1)
        batch = plan.at(step)
        assert batch == BatchStep(step, length, rows, step * rows, tokens)
        assert plan.progress_at(step) == Progress(step, step * rows, tokens)
        tokens += rows * length
        assert batch.after == plan.progress_at(step + 1) == Progress(step + 1, (step + 1) * rows, tokens)
    assert plan.tokens_trained == tokens
    assert plan.tokens_trained + plan.tokens_discarded == total_steps * rows * 64
    lengths = [run.seq_len for run in plan.runs]
    assert all(a != b for a, b in zip(lengths, lengths[1:], strict=False)), "runs are not merged"


@settings(max_examples=200, deadline=None)
@given(drawn_curricula(), st.integers(1, 9), st.integers(1, 20_000))
def test_plan_by_tokens_stops_at_the_first_step_that_reaches_them(
    curriculum: CurriculumConfig | None, rows: int, target: int
) -> None:
    plan = compile_plan(run_config(rows, 64, curriculum, train_tokens=target))
    steps = tokens = 0
    while tokens < target:
        steps += 1
        tokens += rows * difficulty_at(curriculum, 64, steps)
    assert (plan.total_steps, plan.tokens_trained) == (steps, tokens)
    assert plan.steps_to_tokens(target) == steps


@settings(max_examples=100, deadline=None)
@given(drawn_curricula(), st.integers(1, 9), st.data())
def test_steps_to_tokens_inverts_progress(
    curriculum: CurriculumConfig | None, rows: int, data: st.DataObject
) -> None:
    plan = compile_plan(run_config(rows, 64, curriculum, train_steps=100))
    target = data.draw(st.integers(1, plan.tokens_trained))
    steps = plan.steps_to_tokens(target)
    assert plan.progress_at(steps - 1).tokens < target <= plan.progress_at(steps).tokens


def test_steps_to_tokens_at_its_ends() -> None:
    plan = compile_plan(run_config(2, 64, train_steps=10))
    assert plan.steps_to_tokens(0) == 0
    assert plan.steps_to_tokens(plan.tokens_trained) == 10
    with pytest.raises(ValueError, match="never reaches 1281"):
        plan.steps_to_tokens(1281)


@pytest.mark.parametrize("step", [-1, 10])
def test_steps_outside_the_plan_are_refused(step: int) -> None:
    plan = compile_plan(run_config(2, 64, train_steps=10))
    with pytest.raises(IndexError, match="not in the plan"):
        plan.at(step)


def test_a_curriculum_may_end_below_the_full_length() -> None:
    plan = compile_plan(run_config(2, 64, linear(8, 32, 4), train_steps=10))
    assert plan.at(9).seq_len == 32
    assert plan.full_length == 64


def test_a_length_above_the_model_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"seq_len 72 is longer than the full length 64"):
        compile_plan(run_config(2, 64, linear(8, 128, 100), train_steps=100))


@pytest.mark.parametrize("training", [{}, {"train_steps": 3, "train_tokens": 5}], ids=str)
def test_exactly_one_end_of_the_run(training: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="exactly one"):
        compile_plan(run_config(2, 64, **training))


def test_json_round_trip() -> None:
    plan = compile_plan(run_config(512, 1024, linear(64, 1024, 4500), train_steps=5000))
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


GOOD = {
    "total_steps": 10, "full_length": 64, "mode": "seqlen_truncate", "samples": None, "runs": [[0, 8, 4], [3, 64, 4]],
}  # fmt: skip


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ([], "plan must be"),
        ({**GOOD, "extra": 1}, "plan must be"),
        ({"runs": []}, "plan must be"),
        ({**GOOD, "total_steps": "10"}, "total_steps"),
        ({**GOOD, "total_steps": True}, "total_steps"),
        ({**GOOD, "total_steps": 0}, "total_steps"),
        ({**GOOD, "total_steps": 10**30}, "total_steps"),
        ({**GOOD, "total_steps": 3}, r"runs\[1\].first_step is 3"),
        ({**GOOD, "full_length": 64.0}, "full_length"),
        ({**GOOD, "full_length": 63}, r"runs\[1\].seq_len 64"),
        ({**GOOD, "runs": []}, "runs is empty"),
        ({**GOOD, "runs": {"0": 1}}, "runs must be a list"),
        ({**GOOD, "runs": [[0, 8]]}, r"runs\[0\]"),
        ({**GOOD, "runs": ["abc"]}, r"runs\[0\]"),
        ({**GOOD, "runs": [[1, 8, 4]]}, r"runs\[0\].first_step"),
        ({**GOOD, "runs": [[0, 0, 4]]}, r"runs\[0\].seq_len"),
        ({**GOOD, "runs": [[0, 8, 0]]}, r"runs\[0\].rows"),
        ({**GOOD, "runs": [[0, 8, 4], [0, 16, 4]]}, r"runs\[1\].first_step"),
        ({**GOOD, "runs": [[0, 8, 4], [5, 16, 4], [4, 24, 4]]}, r"runs\[2\].first_step"),
        ({**GOOD, "runs": [[0, 8, 4], [None, 16, 4]]}, r"runs\[1\].first_step"),
        ({**GOOD, "mode": "seqlen_lost"}, "plan.mode"),
        ({**GOOD, "mode": ["seqlen_truncate"]}, "plan.mode"),
        ({**GOOD, "samples": 0}, "plan.samples"),
        ({**GOOD, "samples": "9"}, "plan.samples"),
        ({**GOOD, "total_steps": 2**62, "full_length": 2**40, "runs": [[0, 2**40, 2**40]]}, "tokens"),
    ],
    ids=str,
)
def test_a_damaged_plan_is_refused_naming_the_field(data: Any, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        Plan.from_json(data)


def test_a_plan_cannot_be_built_wrong_either() -> None:
    with pytest.raises(ConfigError, match="first_step"):
        Plan((Run(1, 8, 4),), total_steps=10, full_length=64)


def test_progress_round_trip() -> None:
    progress = Progress(3, 12, 96)
    assert Progress.from_json(json.loads(json.dumps(progress.to_json()))) == progress


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (None, "progress must be"),
        ({"step": 1, "samples": 2}, "progress must be"),
        ({"step": 1, "samples": 2, "tokens": 3, "epoch": 0}, "progress must be"),
        ({"step": -1, "samples": 2, "tokens": 3}, "progress.step"),
        ({"step": 1, "samples": 2.0, "tokens": 3}, "progress.samples"),
        ({"step": 1, "samples": 2, "tokens": 2**63}, "progress.tokens"),
        ({"step": 1, "samples": False, "tokens": 3}, "progress.samples"),
    ],
    ids=str,
)
def test_a_damaged_progress_is_refused(data: Any, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        Progress.from_json(data)
