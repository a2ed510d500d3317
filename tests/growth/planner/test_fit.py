"""The fit on curves whose law is known: found without noise, inside the intervals with it."""

from __future__ import annotations

import numpy as np
import pytest

from megatron_slw.growth.planner.fit import LEAST_POINTS, fit
from megatron_slw.growth.planner.law import Law

TOKENS = np.linspace(2e8, 3e9, 60)


@pytest.mark.parametrize(("floor", "exponent"), [(3.2, 0.76), (0.0, 0.1), (2.7, 1.6), (1.5, 0.3)])
def test_a_curve_without_noise_is_found(floor: float, exponent: float) -> None:
    law = Law(floor, (3.6 - floor) * 1e9**exponent, exponent)
    found = fit(TOKENS.tolist(), [law.loss(t) for t in TOKENS], cost=1.0)
    for tokens in (1e8, 1e9, 9e9):
        assert found.law.loss(tokens) == pytest.approx(law.loss(tokens), rel=1e-4)
    assert found.law.exponent == pytest.approx(exponent, rel=1e-2)


@pytest.mark.parametrize("neighbours", [0.0, 0.5])
def test_intervals_hold_the_truth_about_as_often_as_they_say(neighbours: float) -> None:
    """Nine of ten are meant. Errors of neighbours that go together, as validation losses have, cost some."""
    law = Law(3.2, 0.4 * 1e9**0.8, 0.8)
    truth, losses = law.done(law.loss_at_slope(-0.0475)), np.array([law.loss(t) for t in TOKENS])
    generator = np.random.default_rng(0)
    held = 0
    for trial in range(60):
        noise = generator.normal(scale=0.003, size=len(TOKENS))
        for i in range(1, len(noise)):
            noise[i] = neighbours * noise[i - 1] + np.sqrt(1 - neighbours**2) * noise[i]
        found = fit(TOKENS.tolist(), (losses + noise).tolist(), 1.0, seed=trial, resamples=60)
        low, high = np.percentile([r.done(r.loss_at_slope(-0.0475)) for r in found.resampled], [5, 95])
        held += bool(low <= truth <= high)
        assert 0.0015 < found.noise < 0.006
    assert held >= (48 if neighbours == 0.0 else 40), f"{held} of 60"


def test_less_noise_and_more_of_the_curve_make_narrower_intervals() -> None:
    law = Law(3.2, 0.4 * 1e9**0.8, 0.8)

    def width(tokens: np.ndarray, scale: float) -> float:
        noise = np.random.default_rng(1).normal(scale=scale, size=len(tokens))
        found = fit(tokens.tolist(), [law.loss(t) + e for t, e in zip(tokens, noise, strict=True)], 1.0)
        low, high = np.percentile([r.floor for r in found.resampled], [5, 95])
        return float(high - low)

    assert width(TOKENS, 0.001) < 0.5 * width(TOKENS, 0.004)
    assert width(TOKENS, 0.004) < 0.5 * width(TOKENS[:25], 0.004)


def test_the_same_points_give_the_same_fit() -> None:
    losses = [3.2 + 0.4 * (1e9 / t) ** 0.8 + 0.002 * (-1) ** i for i, t in enumerate(TOKENS)]
    assert fit(TOKENS.tolist(), losses, 1.0) == fit(TOKENS.tolist(), losses, 1.0)


def test_a_rising_loss_gives_a_law_that_does_not_fall_below_zero_anywhere() -> None:
    found = fit(TOKENS.tolist(), np.linspace(3.0, 4.0, len(TOKENS)).tolist(), 1.0)
    assert all(law.floor >= 0.0 and law.scale >= 0.0 for law in (found.law, *found.resampled))


def test_too_few_points_are_no_curve() -> None:
    with pytest.raises(ValueError, match="too few"):
        fit([1.0] * (LEAST_POINTS - 1), [1.0] * (LEAST_POINTS - 1), 1.0)
