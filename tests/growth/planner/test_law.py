"""The published law and what follows from it, against figures that are published or were derived from it by hand."""

from __future__ import annotations

import math

import pytest

from megatron_slw.growth.planner.law import Law, best_growth_loss, kaplan, optimal_slope


def test_the_stopping_slope_is_the_published_one() -> None:
    assert optimal_slope() == pytest.approx(-0.05199, abs=5e-6)
    assert optimal_slope(0.0) == pytest.approx(-0.0691, abs=5e-5)


@pytest.mark.parametrize("parameters", [2e7, 8.5e7, 6.8e8])
def test_no_other_size_is_better_where_the_curve_has_the_stopping_slope(parameters: float) -> None:
    """What makes the slope the best place to stop: at that loss every other size costs more."""
    law = kaplan(parameters)
    loss = law.loss_at_slope(optimal_slope())
    for ratio in (0.5, 0.9, 1.1, 2.0):
        assert kaplan(ratio * parameters).compute(loss) > law.compute(loss)


def test_the_slope_is_that_of_the_curve() -> None:
    law = Law(floor=2.5, scale=300.0, exponent=0.6, cost=7.0, batch_power=4.76)
    for loss in (2.6, 3.3, 5.0):
        step = 1e-6
        rise = math.log(law.compute(loss + step)) - math.log(law.compute(loss - step))
        assert law.slope(loss) == pytest.approx((math.log(loss + step) - math.log(loss - step)) / rise, rel=1e-6)
        assert law.loss_at_slope(law.slope(loss)) == pytest.approx(loss, rel=1e-12)
        assert law.loss(law.done(loss)) == pytest.approx(loss, rel=1e-12)


@pytest.mark.parametrize("parameters", [4.25e7, 1.7e8])
@pytest.mark.parametrize(("ratio", "slope"), [(2, -0.0598), (4, -0.0519)])
def test_growing_saves_most_at_the_derived_slopes(parameters: float, ratio: int, slope: float) -> None:
    small, large = kaplan(parameters), kaplan(ratio * parameters)
    loss = best_growth_loss(small, large)
    assert small.slope(loss) == pytest.approx(slope, abs=5e-5)
    for other in (0.99 * loss, 1.01 * loss):
        assert large.compute(other) - small.compute(other) < large.compute(loss) - small.compute(loss)


@pytest.mark.parametrize(("slope", "ratio", "steps"), [(-0.0475, 4, 2.717), (-0.0575, 2, 1.618), (-0.0475, 2, 1.831)])
def test_steps_before_over_after_are_the_notebook_s(slope: float, ratio: int, steps: float) -> None:
    small, large = kaplan(4.25e7), kaplan(ratio * 4.25e7)
    loss = small.loss_at_slope(slope)
    assert small.done(loss) / large.done(loss) == pytest.approx(steps, rel=1e-3)


def test_a_larger_model_at_no_more_cost_leaves_nothing_to_gain() -> None:
    small = kaplan(1e8)
    assert best_growth_loss(small, small.larger(2.0, small.cost)) == math.inf


def test_what_is_not_on_the_curve_is_not_reached() -> None:
    law = kaplan(1e8)
    assert law.done(law.floor) == math.inf
    assert law.slope(law.floor) == 0.0
    assert law.loss_at_slope(-5.0) == math.inf, "no law is that steep"
