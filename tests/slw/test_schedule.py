"""The schedule against DeepSpeed's own class, step by step, and its mended faults by table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_slw.config.errors import ConfigError
from megatron_slw.config.schema import CurriculumConfig
from megatron_slw.slw.schedule import difficulty_at, next_change


def ramp(low: int, high: int, total: int, quantum: int, degree: int | None = None) -> CurriculumConfig:
    """fixed_linear, or fixed_root where a degree is given."""
    return CurriculumConfig(
        schedule_type="fixed_linear" if degree is None else "fixed_root",
        min_difficulty=low,
        max_difficulty=high,
        total_curriculum_step=total,
        difficulty_step=quantum,
        root_degree=degree,
    )


def discrete(difficulty: tuple[int, ...], max_step: tuple[int, ...]) -> CurriculumConfig:
    return CurriculumConfig(
        schedule_type="fixed_discrete",
        min_difficulty=min(difficulty),
        max_difficulty=max(difficulty),
        difficulty=difficulty,
        max_step=max_step,
    )


def lengths(curriculum: CurriculumConfig | None, steps: int, full: int = 4096) -> list[int]:
    return [difficulty_at(curriculum, full, t) for t in range(1, steps + 1)]


def deepspeed_scheduler(curriculum: CurriculumConfig) -> Any:
    module = pytest.importorskip("deepspeed.runtime.data_pipeline.curriculum_scheduler")
    names = ("total_curriculum_step", "difficulty_step", "root_degree", "difficulty", "max_step")
    return module.CurriculumScheduler(
        {
            "min_difficulty": curriculum.min_difficulty,
            "max_difficulty": curriculum.max_difficulty,
            "schedule_type": curriculum.schedule_type,
            "schedule_config": curriculum.model_dump(include=set(names), exclude_none=True),
        }
    )


def oracle(curriculum: CurriculumConfig, steps: int, latching: bool) -> list[int]:
    """DeepSpeed's lengths: through the call its engine makes (latching), or the bare formula."""
    scheduler = deepspeed_scheduler(curriculum)
    call: Callable[[int], int] = scheduler.update_difficulty if latching else scheduler.get_difficulty
    return [call(t) for t in range(1, steps + 1)]


@pytest.mark.parametrize(
    "curriculum",
    [
        ramp(64, 1024, 4500, 8),
        ramp(8, 1024, 6000, 8),
        ramp(8, 2048, 1100, 8, 2),
        ramp(64, 1020, 700, 8),  # the last value is no multiple of the step
        ramp(8, 256, 300, 16),  # rounding down would give length 0
        ramp(80, 2048, 5, 8, 3),  # jumps over most lengths
        ramp(60, 61, 1, 8),
        ramp(100, 512, 333, 7, 5),
        ramp(512, 512, 10, 8),
        discrete((128, 256, 1024), (600, 1200)),
        discrete((8, 8, 16), (3, 9)),
    ],
    ids=str,
)
def test_equals_deepspeed_as_its_engine_calls_it(curriculum: CurriculumConfig) -> None:
    steps = 7000
    assert lengths(curriculum, steps) == oracle(curriculum, steps, latching=True)


@st.composite
def drawn_ramps(draw: st.DrawFn) -> CurriculumConfig:
    low = draw(st.integers(1, 600))
    return ramp(
        low,
        draw(st.integers(low, 4096)),
        draw(st.integers(1, 10**6)),
        draw(st.sampled_from([1, 2, 3, 7, 8, 16, 64, 100])),
        draw(st.none() | st.integers(1, 6)),
    )


@settings(max_examples=300, deadline=None)
@given(drawn_ramps(), st.data())
def test_equals_deepspeed_for_drawn_ramps(curriculum: CurriculumConfig, data: st.DataObject) -> None:
    scheduler = deepspeed_scheduler(curriculum)
    total = curriculum.total_curriculum_step or 0
    start = data.draw(st.integers(1, total + 100))
    for t in [*range(1, 20), *range(start, start + 100), *range(max(1, total - 5), total + 6), 3 * total]:
        assert difficulty_at(curriculum, 4096, t) == scheduler.get_difficulty(t)


@st.composite
def drawn_lists(draw: st.DrawFn) -> CurriculumConfig:
    ends = sorted(draw(st.sets(st.integers(1, 60), min_size=1, max_size=6)))
    count = len(ends) + 1
    return discrete(
        tuple(draw(st.lists(st.sampled_from([8, 16, 64, 128]), min_size=count, max_size=count))), tuple(ends)
    )


@settings(max_examples=200, deadline=None)
@given(drawn_lists())
def test_equals_deepspeeds_formula_for_drawn_lists(curriculum: CurriculumConfig) -> None:
    assert lengths(curriculum, 70) == oracle(curriculum, 70, latching=False)


def test_a_list_may_start_at_its_maximum_and_go_down() -> None:
    curriculum = discrete((32, 8, 16), (2, 4))
    assert lengths(curriculum, 6) == [32, 32, 8, 8, 16, 16]
    assert oracle(curriculum, 6, latching=True) == [32] * 6, "DeepSpeed no longer latches"


@pytest.mark.parametrize(
    ("curriculum", "expected"),
    [
        (None, [4096] * 4),
        (ramp(8, 64, 1, 8), [64] * 4),
        (ramp(8, 32, 4, 8), [8, 16, 24, 32]),  # (max - min) / T < step: the start is seen
        (ramp(8, 32, 3, 8), [16, 24, 32, 32]),  # t counts from 1, so the start is skipped
        (ramp(8, 30, 2, 16), [16, 16, 30, 30]),  # 16 -> 30: the end is the maximum itself, not 16
        (ramp(16, 64, 4, 8, 2), [40, 48, 56, 64]),
    ],
    ids=str,
)
def test_lengths_by_hand(curriculum: CurriculumConfig | None, expected: list[int]) -> None:
    assert lengths(curriculum, 4) == expected


@pytest.mark.parametrize(
    ("low", "high", "quantum"), [(8, 1020, 8), (1, 1000, 16), (1020, 1020, 8), (9, 15, 16)], ids=str
)
def test_the_last_length_is_the_maximum_itself(low: int, high: int, quantum: int) -> None:
    assert difficulty_at(ramp(low, high, 50, quantum), high, 10**12) == high


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"total_curriculum_step": None}, "total_curriculum_step"),
        ({"total_curriculum_step": 0}, "total_curriculum_step"),
        ({"difficulty_step": None}, "difficulty_step"),
        ({"schedule_type": "fixed_root", "root_degree": None}, "root_degree"),
        ({"schedule_type": "fixed_discrete"}, "max_step"),
        ({"schedule_type": "fixed_discrete", "difficulty": (8, 16), "max_step": (3, 4)}, "max_step"),
        ({"schedule_type": "fixed_discrete", "difficulty": (8, 16, 32), "max_step": (4, 4)}, "max_step"),
    ],
    ids=str,
)
def test_an_incomplete_schedule_is_a_sentence_not_a_crash(changes: dict[str, Any], word: str) -> None:
    curriculum = ramp(8, 64, 10, 8).model_copy(update=changes)
    with pytest.raises(ConfigError, match=word):
        difficulty_at(curriculum, 64, 1)


def test_steps_count_from_one() -> None:
    with pytest.raises(ValueError, match="count from 1"):
        difficulty_at(None, 64, 0)


@settings(max_examples=200, deadline=None)
@given(drawn_ramps() | drawn_lists() | st.none(), st.integers(1, 3000), st.integers(1, 300))
def test_next_change_equals_a_walk(curriculum: CurriculumConfig | None, t: int, window: int) -> None:
    end = t + window
    here = difficulty_at(curriculum, 4096, t)
    walked = next((u for u in range(t + 1, end) if difficulty_at(curriculum, 4096, u) != here), end)
    assert next_change(curriculum, 4096, t, end) == walked
