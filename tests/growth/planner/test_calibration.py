"""tau and rho of two curves whose laws are known."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from megatron_slw.config.errors import ConfigError
from megatron_slw.growth.planner.calibration import calibrate, first_at, read_calibration, to_json
from megatron_slw.growth.planner.fit import Fit, fit
from megatron_slw.growth.planner.law import Law, best_growth_loss
from megatron_slw.growth.planner.points import Points
from tests.growth.planner import logs

SMALL = Law(3.3, 0.35 * 1e6**0.8, 0.8, cost=1.0)
LARGE = Law(2.9, 0.38 * 1e6**0.8, 0.8, cost=2.0)


def measured(law: Law, last: float, noise: float = 0.002, count: int = 60, seed: int = 0) -> tuple[Fit, Points]:
    tokens = np.linspace(last / count, last, count)
    generator = np.random.default_rng(seed)
    losses = [law.loss(done) + noise * generator.normal() for done in tokens]
    points = Points(tuple(tokens), tuple(losses), "validation", count, last, last / count, law.cost, 1.0)
    return fit(points.tokens, points.losses, law.cost), points


def test_the_truth_lies_in_the_intervals_and_the_points_say_the_same() -> None:
    (small, small_points), (large, large_points) = measured(SMALL, 4e6), measured(LARGE, 4e6, seed=1)
    found = calibrate(
        (small.law, large.law), (small.resampled, large.resampled), (small_points, large_points), (2.0, 1.0)
    )
    assert found is not None
    loss = best_growth_loss(SMALL, LARGE)
    slope, position = SMALL.slope(loss), LARGE.done(loss) / SMALL.done(loss)
    assert found.slope.low < slope < found.slope.high < 0.0
    assert found.position.low < position < found.position.high < 1.0
    assert found.position.high - found.position.low < 0.2
    assert found.best.read_off == pytest.approx(found.position.value, rel=0.05)
    shares = [row.position.value for row in found.others]
    assert shares == sorted(shares, reverse=True), "the later one grows, the less of the small model's tokens counts"
    assert all(row.saved <= found.best.saved for row in found.others)


def test_the_published_curves_give_the_published_position() -> None:
    """12 x 384 and 12 x 768 of the published code: its notebook reads 0.539 off them at step 3799."""
    found = []
    for losses, cost in ((logs.QUARTER, 21.2), (logs.BASE, 84.9)):
        pairs = [(s, v) for s, v in zip(logs.STEPS, losses, strict=True) if s >= logs.WARM]
        steps, values = zip(*pairs, strict=True)
        points = Points(steps, values, "validation", steps[-1], steps[-1], 1.0, cost, 1.0)
        found.append((fit(steps, values, cost), points))
    (small, small_points), (large, large_points) = found
    pair = calibrate(
        (small.law, large.law), (small.resampled, large.resampled), (small_points, large_points), (1.0, 2.0)
    )
    assert pair is not None
    assert pair.position.value == pytest.approx(0.539, abs=0.03)


def test_nothing_to_gain_is_no_calibration() -> None:
    """The larger model has every loss for less compute."""
    better = Law(2.5, SMALL.scale / 4.0, 0.8, cost=1.5)
    (small, small_points), (large, large_points) = measured(SMALL, 4e6), measured(better, 4e6)
    laws, resampled = (small.law, large.law), (small.resampled, large.resampled)
    assert calibrate(laws, resampled, (small_points, large_points), (2.0, 1.0)) is None


def test_reading_off_needs_no_law() -> None:
    points = measured(SMALL, 4e6, noise=0.0)[1]
    assert first_at(points, SMALL.loss(1e6)) == pytest.approx(1e6, rel=0.02)
    assert math.isnan(first_at(points, 1.0)) and math.isnan(first_at(points, 99.0))


def test_a_file_is_read_back_and_a_wrong_one_refused(tmp_path: Path) -> None:
    (small, small_points), (large, large_points) = measured(SMALL, 4e6), measured(LARGE, 4e6)
    laws, resampled = (small.law, large.law), (small.resampled, large.resampled)
    found = calibrate(laws, resampled, (small_points, large_points), (2.0, 1.0))
    assert found is not None
    tree, path = to_json(found), tmp_path / "calibration.json"
    path.write_text(json.dumps(tree, allow_nan=False))
    again = read_calibration(path)
    assert (again.slope, again.position, again.factors) == (found.slope, found.position, (2.0, 1.0))
    for name, value, words in (
        ("version", 2, "version"),
        ("slope", {"value": 0.1, "low": -0.2, "high": 0.2}, "slope.value"),
        ("position", [0.5], "value, low and high"),
        ("depth", "2", "depth must be a number"),
        ("width", None, "width must be a number"),
    ):
        path.write_text(json.dumps(tree | {name: value}))
        with pytest.raises(ConfigError, match=words):
            read_calibration(path)
