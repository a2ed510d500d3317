"""The verdict during a run: at the growth point, not before, and not by noise."""

from __future__ import annotations

import numpy as np
import pytest

from megatron_slw.growth.planner.law import Law
from megatron_slw.growth.planner.points import Reader
from megatron_slw.growth.planner.watch import growth_point

LAW = Law(3.2, 0.4 * 1e6**0.8, 0.8)
SLOPE = -0.0475
POINT = LAW.done(LAW.loss_at_slope(SLOPE))
EVERY = 50_000


def first_verdict(seed: int, noise: float, last: float = 5e6, kind: str = "val_loss") -> float | None:
    """The tokens at which a run of this law, evaluated every EVERY tokens, ends."""
    generator, reader = np.random.default_rng(seed), Reader(32)
    for i in range(1, int(last) // EVERY + 1):
        loss = LAW.loss(i * EVERY) + generator.normal() * noise
        rate = min(1.0, i / 3)
        reader.take({"step": i, "tokens": i * EVERY, "seq_len": 32, "loss": loss, "lr": rate, "flops": i})
        if kind == "val_loss":
            reader.take({"tokens": i * EVERY, "val_loss": loss})
        found = growth_point(reader, SLOPE)
        if found is not None:
            assert found.step == i and found.slope >= SLOPE
            return i * EVERY
    return None


def test_without_noise_it_is_the_first_evaluation_after_the_point() -> None:
    assert first_verdict(0, 0.0) == pytest.approx(POINT + EVERY / 2, abs=EVERY / 2 + 1)


def test_noise_makes_it_late_rather_than_early() -> None:
    found = [first_verdict(seed, 0.003) for seed in range(6)]
    assert all(tokens is not None and 0.75 * POINT < tokens < 1.4 * POINT for tokens in found), (found, POINT)


def test_a_run_that_stays_steep_does_not_end() -> None:
    assert first_verdict(1, 0.003, last=0.7 * POINT) is None


def test_training_losses_do_not_decide() -> None:
    assert first_verdict(1, 0.0, kind="loss") is None
