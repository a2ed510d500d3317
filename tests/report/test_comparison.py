"""The cost of reaching a loss and the correlation, on cases worked out by hand."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from megatron_slw.report.comparison import Correlation, Pearson, reach

POSITIONS = [(10.0, 100.0), (20.0, 300.0), (30.0, 700.0), (40.0, 800.0)]


@pytest.mark.parametrize(
    ("losses", "target", "position", "at_first"),
    [
        ((5.0, 4.0, 3.0, 2.0), 4.5, (15.0, 200.0), False),  # half-way from the first to the second
        ((5.0, 4.0, 3.0, 2.0), 3.75, (22.5, 400.0), False),  # a quarter of the way to the third
        ((5.0, 4.0, 3.0, 2.0), 3.0, (30.0, 700.0), False),  # exactly an evaluation
        ((5.0, 3.0, 4.0, 2.0), 3.5, (17.5, 250.0), False),  # the first time, although it rises again
        ((5.0, 4.0, 3.0, 2.0), 5.0, (10.0, 100.0), True),
        ((5.0, 4.0, 3.0, 2.0), 9.0, (10.0, 100.0), True),
        ((5.0, math.nan, 3.0, 2.0), 4.0, (20.0, 400.0), False),  # from the first to the third
        ((math.nan, 4.0, 3.0, 2.0), 4.0, (20.0, 300.0), True),
    ],
)
def test_where_a_loss_is_reached(
    losses: tuple[float, ...], target: float, position: tuple[float, ...], at_first: bool
) -> None:
    found = reach(POSITIONS, losses, target)
    assert found is not None and found.position == pytest.approx(position) and found.at_first == at_first


def test_a_loss_that_is_never_reached() -> None:
    assert reach(POSITIONS, (5.0, 4.0, 3.0, 2.0), 1.99) is None
    assert reach(POSITIONS, (math.nan,) * 4, 9.0) is None
    assert reach([], [], 9.0) is None


def test_an_unknown_clock_stays_unknown() -> None:
    found = reach([(1.0, math.nan), (3.0, math.nan)], (2.0, 1.0), 1.5)
    assert found is not None and found.position[0] == 2.0 and math.isnan(found.position[1])


def correlate(xs: list[float], ys: list[float]) -> Pearson | None:
    correlation = Correlation()
    for x, y in zip(xs, ys, strict=True):
        correlation.add(x, y)
    return correlation.result()


def test_a_correlation_worked_out_by_hand() -> None:
    # Deviations (-2 -1 0 1 2) and (-1 -2 1 0 2): products 2 + 2 + 0 + 0 + 4 = 8, squares 10 and 10.
    found = correlate([1, 2, 3, 4, 5], [2, 1, 4, 3, 5])
    assert found is not None and found.r == pytest.approx(0.8) and found.count == 5
    # Fisher: z = atanh(0.8) sqrt(2) = 1.0986 x 1.4142 = 1.5537, two-sided 0.1203.
    assert found.p == pytest.approx(0.1203, abs=1e-4)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_perfect_correlation(sign: int) -> None:
    found = correlate([1.0, 2.0, 3.0, 4.0], [sign * 1e6 + sign * x for x in (1.0, 2.0, 3.0, 4.0)])
    assert found is not None and found.r == pytest.approx(sign) and found.p == pytest.approx(0, abs=1e-5)


def test_a_stream_is_as_exact_as_numpy_far_from_zero() -> None:
    rng = random.Random(5)
    xs = [1e8 + rng.gauss(0, 1) for _ in range(5000)]
    ys = [0.3 * (x - 1e8) + rng.gauss(0, 1) for x in xs]
    found = correlate(xs, ys)
    assert found is not None and found.r == pytest.approx(np.corrcoef(xs, ys)[0, 1], abs=1e-7)


def test_values_that_are_not_finite_are_left_out() -> None:
    found = correlate([1, 2, math.nan, 3, math.inf, 4, 5], [2, 1, 9, 4, 9, 3, 5])
    assert found is not None and found.r == pytest.approx(0.8) and found.count == 5


@pytest.mark.parametrize(("xs", "ys"), [([], []), ([1.0], [2.0]), ([1.0, 1.0, 1.0], [1.0, 2.0, 3.0])])
def test_no_correlation_without_variation(xs: list[float], ys: list[float]) -> None:
    assert correlate(xs, ys) is None


def test_no_chance_from_three_pairs() -> None:
    found = correlate([1, 2, 3], [1, 3, 2])
    assert found is not None and found.r == pytest.approx(0.5) and found.p is None
