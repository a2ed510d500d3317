"""The learning rate against closed forms, with and without a length warmup."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_slw.config.errors import ConfigError
from megatron_slw.config.schema import RunConfig
from megatron_slw.growth.record import GrowthRecord
from megatron_slw.slw.compile import compile_plan
from megatron_slw.slw.plan import Plan
from megatron_slw.train.learning_rate import learning_rate
from tests.slw.run_configs import linear, run_config

PEAK, LOWEST = 6e-4, 1e-5


def compiled(slw: bool = False, **training: Any) -> tuple[RunConfig, Plan]:
    """100 steps of 4 rows: 64 tokens long, or 8 -> 64 over the first 40 steps."""
    settings = {"train_steps": 100, "min_lr": LOWEST, **training}
    config = run_config(4, 64, linear(8, 64, 40) if slw else None, lr=PEAK, **settings)
    return config, compile_plan(config)


def rates(config: RunConfig, plan: Plan) -> list[float]:
    return [learning_rate(config, plan, step) for step in range(plan.total_steps)]


def test_without_a_length_warmup_it_is_the_usual_cosine_over_steps() -> None:
    measured = rates(*compiled(lr_warmup_steps=20))
    for step, rate in enumerate(measured):
        if step < 20:
            expected = PEAK * (step + 1) / 20
        else:
            expected = LOWEST + (PEAK - LOWEST) * (1 + math.cos(math.pi * (step - 19) / 80)) / 2
        assert rate == pytest.approx(expected, rel=1e-12)
    assert measured[0] == PEAK / 20
    assert measured[19] == PEAK
    assert measured[-1] == LOWEST


def test_linear_decay_follows_tokens_not_steps() -> None:
    config, plan = compiled(slw=True, lr_warmup_steps=10, lr_decay_style="linear")
    origin, end = plan.progress_at(10).tokens, plan.tokens_trained
    for step in range(10, 100):
        expected = PEAK + (LOWEST - PEAK) * (plan.progress_at(step + 1).tokens - origin) / (end - origin)
        assert learning_rate(config, plan, step) == pytest.approx(expected, rel=1e-12)
    # Half of the decay's steps have trained less than half of its tokens, because lengths grow.
    assert learning_rate(config, plan, 54) > (PEAK + LOWEST) / 2


def test_warmup_by_tokens_under_a_length_warmup() -> None:
    config, plan = compiled(slw=True, lr_warmup_tokens=3001, lr_decay_style="linear")
    last = plan.steps_to_tokens(3001) - 1
    assert 20 < last < 40, "the case must end inside the length warmup"
    for step in range(last):
        tokens = plan.progress_at(step + 1).tokens
        assert learning_rate(config, plan, step) == pytest.approx(PEAK * tokens / 3001, rel=1e-12)
    # The step that crosses the end of the warmup is already on the decay line that begins at 3,001 tokens.
    done = (plan.progress_at(last + 1).tokens - 3001) / (plan.tokens_trained - 3001)
    assert learning_rate(config, plan, last) == pytest.approx(PEAK + (LOWEST - PEAK) * done, rel=1e-12)


def test_lr_decay_tokens_before_the_end_leaves_min_lr() -> None:
    config, plan = compiled(lr_decay_tokens=50 * 256, lr_decay_style="linear")
    measured = rates(config, plan)
    assert measured[24] == pytest.approx((PEAK + LOWEST) / 2)
    assert measured[48] > LOWEST
    assert set(measured[49:]) == {LOWEST}


def test_lr_decay_tokens_after_the_end_is_not_reached() -> None:
    measured = rates(*compiled(lr_decay_tokens=200 * 256, lr_decay_style="linear"))
    assert measured[-1] == pytest.approx((PEAK + LOWEST) / 2)


def test_constant_stays_at_the_peak() -> None:
    measured = rates(*compiled(lr_warmup_steps=4, lr_decay_style="constant"))
    assert measured[:4] == [PEAK * part / 4 for part in (1, 2, 3, 4)]
    assert set(measured[4:]) == {PEAK}


def test_a_warmup_longer_than_the_run_just_rises() -> None:
    assert rates(*compiled(lr_warmup_steps=1000))[-1] == PEAK * 100 / 1000
    assert rates(*compiled(lr_warmup_tokens=100_000))[-1] == PEAK * 25_600 / 100_000


def test_paper_case_15_reaches_min_lr_with_its_last_step() -> None:
    tokens = 157_286_400_000
    config = run_config(
        4096,
        1024,
        linear(64, 1024, 45_000),
        lr=PEAK,
        train_tokens=tokens,
        lr_decay_tokens=tokens,
        lr_warmup_steps=3000,
        min_lr=LOWEST,
    )
    plan = compile_plan(config)
    assert learning_rate(config, plan, 2999) == PEAK
    assert learning_rate(config, plan, plan.total_steps - 2) > LOWEST
    assert learning_rate(config, plan, plan.total_steps - 1) == LOWEST


@settings(max_examples=100, deadline=None)
@given(
    slw=st.booleans(),
    warmup=st.sampled_from([{}, {"lr_warmup_steps": 0}, {"lr_warmup_steps": 30}, {"lr_warmup_tokens": 2222}]),
    style=st.sampled_from(["cosine", "linear", "constant"]),
    decay=st.none() | st.integers(9000, 40_000),
)
def test_it_rises_to_the_peak_then_only_falls(slw: bool, warmup: Any, style: str, decay: int | None) -> None:
    measured = rates(*compiled(slw=slw, lr_decay_style=style, lr_decay_tokens=decay, **warmup))
    top = measured.index(max(measured))
    assert 0 < measured[0] <= PEAK and measured[top] <= PEAK
    assert measured[: top + 1] == sorted(measured[: top + 1])
    assert measured[top:] == sorted(measured[top:], reverse=True)
    assert all(rate >= LOWEST for rate in measured[top:])


def test_two_warmups_are_refused() -> None:
    config, plan = compiled(lr_warmup_steps=4, lr_warmup_tokens=400)
    with pytest.raises(ConfigError, match="exclude each other"):
        learning_rate(config, plan, 0)


@pytest.mark.parametrize("step", [-1, 100])
def test_a_step_outside_the_plan_is_refused(step: int) -> None:
    config, plan = compiled()
    with pytest.raises(IndexError, match="not in the plan"):
        learning_rate(config, plan, step)


def test_a_grown_model_rises_again_and_then_follows_the_shifted_schedule() -> None:
    """Grown at step 40 to a place 10 steps back in the schedule, with five steps of warmup."""
    config, plan = compiled(lr_warmup_steps=20)
    tokens = plan.at(0).tokens
    record = GrowthRecord(step=40, lr_shift_tokens=10 * tokens, rewarmup_steps=5)
    plain = [learning_rate(config, plan, step) for step in range(100)]
    grown = [learning_rate(config, plan, step, record) for step in range(100)]
    training = config.training.model_copy(update={"lr_decay_tokens": 90 * tokens})
    shifted = config.model_copy(update={"training": training})
    expected = [learning_rate(shifted, plan, step - 10) for step in range(45, 100)]
    assert grown[45:] == pytest.approx(expected, rel=1e-12)
    assert grown[40:45] == pytest.approx([expected[0] * i / 5 for i in range(1, 6)], rel=1e-12)
    assert grown[60] > plain[60], "the shift did nothing"
    assert grown[99] == config.training.min_lr, "the decay must still end with the run"


def test_a_record_without_shift_changes_nothing() -> None:
    config, plan = compiled(lr_warmup_steps=20)
    record = GrowthRecord(step=40)
    for step in range(100):
        assert learning_rate(config, plan, step, record) == learning_rate(config, plan, step)
