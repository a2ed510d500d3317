"""loss_adaptive pacing: when it lengthens, that its decisions are a plan, and that they survive a resume."""

from __future__ import annotations

import json
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_slw.config.errors import ConfigError
from megatron_slw.config.schema import CurriculumConfig
from megatron_slw.slw.adaptive import AdaptivePacing
from megatron_slw.slw.compile import compile_plan
from megatron_slw.slw.plan import Plan
from tests.slw.run_configs import run_config


def curriculum(**changes: object) -> CurriculumConfig:
    return CurriculumConfig.model_validate(
        {"mode": "seqlen_replay", "schedule_type": "loss_adaptive", "min_difficulty": 8, "max_difficulty": 32,
         "difficulty_step": 8, "patience": 5, "smoothing": 0.5,
         "min_improvement": 0.0, **changes}
    )  # fmt: skip


def feed(losses: list[float], schedule: CurriculumConfig) -> AdaptivePacing:
    pacing = AdaptivePacing()
    for step, loss in enumerate(losses):
        pacing = pacing.after(step, loss, schedule)
    return pacing


def test_a_falling_loss_never_lengthens() -> None:
    assert feed([10.0 * 0.99**step for step in range(500)], curriculum()).decisions == ()


def test_a_flat_loss_lengthens_when_patience_is_over() -> None:
    """Smoothing 0.5 fills the average in two steps; the second is the lowest; five more without a lower one."""
    assert feed([3.0] * 7, curriculum()).decisions == ((7, 16),)
    assert feed([3.0] * 6, curriculum()).decisions == ()
    assert feed([3.0] * 500, curriculum()).decisions == ((7, 16), (14, 24), (21, 32)), "it went on at the full length"


def test_an_improvement_too_small_to_count() -> None:
    slow = [3.0 * 0.9995**step for step in range(60)]
    assert feed(slow, curriculum()).decisions == ()
    assert feed(slow, curriculum(min_improvement=0.01)).decisions != ()


def test_a_nan_is_no_loss() -> None:
    falling = [10.0 * 0.99**step for step in range(50)]
    broken = [x for loss in falling for x in (loss, math.nan, math.inf)]
    assert feed(broken, curriculum()).lowest == feed(falling, curriculum()).lowest


def test_the_last_length_is_the_full_one_also_off_the_grid() -> None:
    lengths = [d.seq_len for d in feed([3.0] * 500, curriculum(max_difficulty=30)).decisions]
    assert lengths == [16, 24, 30]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 200))
def test_a_resume_through_json_takes_the_same_decisions(seed: int, cut: int) -> None:
    draw = random.Random(seed)
    losses = [3.0 + draw.random() for _ in range(300)]
    straight = feed(losses, curriculum(smoothing=0.98))
    resumed = feed(losses[:cut], curriculum(smoothing=0.98))
    resumed = AdaptivePacing.from_json(json.loads(json.dumps(resumed.to_json())))
    for step in range(cut, 300):
        resumed = resumed.after(step, losses[step], curriculum(smoothing=0.98))
    assert resumed == straight


def plan(pacing: AdaptivePacing) -> Plan:
    return compile_plan(run_config(4, 32, curriculum(), train_tokens=20_000), pacing.decisions)


def test_decisions_are_a_plan_whose_past_stays() -> None:
    pacing, past = AdaptivePacing(), []
    for step in range(100):
        pacing = pacing.after(step, 3.0, curriculum())
        now = plan(pacing)
        past.append(now.at(step))
        assert [now.at(number) for number in range(step + 1)] == past, "a decision changed a step already trained"
    assert [tuple(run) for run in plan(pacing).runs] == [(0, 8, 4), (7, 16, 4), (14, 24, 4), (21, 32, 4)]
    assert plan(pacing).tokens_trained >= 20_000 > plan(pacing).progress_at(plan(pacing).total_steps - 1).tokens


GOOD = AdaptivePacing().to_json()


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (None, "pacing must be"),
        ({**GOOD, "extra": 1}, "pacing must be"),
        ({**GOOD, "decisions": {}}, "decisions must be a list"),
        ({**GOOD, "decisions": [[1]]}, r"decisions\[0\]"),
        ({**GOOD, "decisions": [[5, 16], [5, 24]]}, r"decisions\[1\]"),
        ({**GOOD, "decisions": [[5, 0]]}, r"decisions\[0\]"),
        ({**GOOD, "average": "1"}, "pacing.average"),
        ({**GOOD, "average": math.nan}, "pacing.average"),
        ({**GOOD, "lowest": True}, "pacing.lowest"),
        ({**GOOD, "seen": -1}, "pacing.seen"),
        ({**GOOD, "waited": 0.5}, "pacing.waited"),
    ],
    ids=str,
)
def test_a_damaged_pacing_is_refused_naming_the_field(data: object, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        AdaptivePacing.from_json(data)
