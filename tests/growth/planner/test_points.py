"""Which losses of a run lie on one curve."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_slw.config.errors import ConfigError
from megatron_slw.growth.planner.points import TooShort, read_points

FULL, SHORT, ROWS = 64, 16, 4


def records(steps: int = 400, warm: int = 100, rate_warm: int = 20, every: int = 10) -> list[dict[str, Any]]:
    """A run whose length is SHORT for `warm` steps; losses at short length and in the rate's warmup are 9."""
    found: list[dict[str, Any]] = []
    tokens = flops = 0
    for step in range(1, steps + 1):
        length = SHORT if step <= warm else FULL
        tokens += ROWS * length
        flops += ROWS * length * 1000
        clean = step > max(warm, rate_warm)
        rate = min(step, rate_warm) / rate_warm * (1.0 - 0.5 * step / steps)
        loss = 3.0 + (10_000 / tokens) ** 0.7 if clean else 9.0
        values = {"step": step, "tokens": tokens, "seq_len": length, "loss": loss + 0.01, "lr": rate, "flops": flops}
        found.append(values)
        if step % every == 0:
            found.append({"step": step, "tokens": tokens, "val_loss": loss})
    return found


def test_only_losses_at_full_length_after_both_warmups_count() -> None:
    for warm, rate_warm in ((100, 20), (20, 100), (0, 50)):
        points = read_points(records(warm=warm, rate_warm=rate_warm))
        assert points.kind == "validation"
        assert len(points.losses) > 20
        assert max(points.losses) < 4.0, "a loss of a warmup is among them"
        assert points.losses[-1] == pytest.approx(3.0 + (10_000 / points.tokens[-1]) ** 0.7)


def test_a_step_is_found_back_from_its_tokens() -> None:
    lines = records()
    points = read_points(lines)
    for record in lines:
        if record["step"] > 100:
            assert points.step(record["tokens"]) == pytest.approx(record["step"])
    assert points.tokens_per_step == ROWS * FULL
    assert points.flops_per_token == pytest.approx(1000)
    assert points.rate_left == pytest.approx(0.5 / 0.975, rel=0.01)


def test_training_losses_stand_in_for_few_validation_losses() -> None:
    points = read_points(records(every=100))
    assert points.kind == "training"
    assert 40 < len(points.losses) <= 64
    assert list(points.tokens) == sorted(points.tokens)
    assert max(points.losses) < 4.0


def test_many_validation_losses_are_averaged() -> None:
    """The fit takes memory for each point and each resampled curve."""
    points = read_points(records(steps=3000, every=1))
    assert points.kind == "validation" and 150 < len(points.losses) <= 256
    assert list(points.tokens) == sorted(points.tokens)
    assert points.losses[-1] == pytest.approx(3.0 + (10_000 / points.tokens[-1]) ** 0.7, rel=1e-4)


def test_a_null_loss_is_left_out() -> None:
    lines = records()
    evaluations = [record for record in lines if "val_loss" in record]
    evaluations[-3]["val_loss"] = None
    assert len(read_points(lines).losses) == len(read_points(records()).losses) - 1


def test_what_was_trained_before_a_growth_is_another_curve() -> None:
    lines = records()
    cut = next(i for i, record in enumerate(lines) if record["step"] == 150)
    lines[cut] |= {"grown_from": "step 149 of 2 layers x 16", "lr_shift_tokens": 5000}
    points = read_points(lines)
    assert min(points.tokens) > lines[cut]["tokens"] - 5000
    assert points.last_tokens == lines[-1]["tokens"] - 5000
    assert points.step(points.last_tokens) == 400


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"steps": 100}, "64 tokens"),
        ({"steps": 400, "rate_warm": 900}, "still rises"),
        ({"steps": 110}, "at least 8"),
        ({"steps": 1}, "no step"),
    ],
)
def test_what_is_too_short_says_why(settings: dict[str, int], reason: str) -> None:
    with pytest.raises(TooShort, match=reason):
        read_points(records(**settings), FULL)


@pytest.mark.parametrize(
    "damage",
    [{"loss": "low"}, {"tokens": None}, {"seq_len": [1]}, {"lr": True}, {"step": "x"}, {"flops": "many"}],
)
def test_what_is_no_record_is_refused(damage: dict[str, Any]) -> None:
    lines = records()
    lines[7] |= damage
    with pytest.raises(ConfigError, match="no metrics record"):
        read_points(lines)
