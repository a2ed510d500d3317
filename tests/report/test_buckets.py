"""The bounded summary of a run: what it keeps of every value, and what it costs."""

from __future__ import annotations

import math
import random
import tracemalloc

import numpy as np
import pytest

from megatron_slw.report.buckets import Buckets


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 16, 17, 1000])
def test_every_value_is_in_its_interval(rows: int) -> None:
    rng = random.Random(rows)
    values = [rng.gauss(0, 1) for _ in range(rows)]
    buckets = Buckets(2, capacity=8)
    for number, value in enumerate(values):
        buckets.add((float(number), value))
    found = buckets.reduced()
    assert len(found) <= 8 and (rows < 8 or len(found) >= 4)
    assert found.count[:, 0].sum() == rows
    first = 0
    for i in range(len(found)):
        inside = values[first : first + int(found.count[i, 1])]
        assert (found.low[i, 1], found.high[i, 1]) == (min(inside), max(inside))
        assert found.mean[i, 1] == pytest.approx(sum(inside) / len(inside))
        first += len(inside)
        assert found.high[i, 0] == first - 1, "an interval ends at its last row"


def test_a_spike_of_one_step_in_100_000_survives() -> None:
    buckets = Buckets(1)
    for number in range(100_000):
        buckets.add((99.0 if number == 61_803 else 1.0,))
    found = buckets.reduced()
    assert np.nanmax(found.high) == 99.0 and (found.high > 1).sum() == 1
    assert 256 <= len(found) <= 512


def test_a_short_run_is_kept_as_it_is() -> None:
    buckets = Buckets(1)
    for number in range(500):
        buckets.add((float(number),))
    assert buckets.reduced().low[:, 0].tolist() == buckets.reduced().high[:, 0].tolist() == list(range(500))


def test_missing_values_leave_a_gap_and_weigh_nothing() -> None:
    buckets = Buckets(1, capacity=4)
    for value in (math.nan, math.nan, 1.0, math.nan, 5.0, 7.0, math.nan, math.nan):
        buckets.add((value,))
    found = buckets.reduced()
    assert found.count[:, 0].tolist() == [1, 2]
    assert found.mean[:, 0].tolist() == [1.0, 6.0]
    buckets = Buckets(1, capacity=4)
    buckets.add((math.nan,))
    assert np.isnan([buckets.reduced().low, buckets.reduced().high, buckets.reduced().mean]).all()


def test_memory_does_not_grow_with_the_run() -> None:
    buckets = Buckets(4)
    tracemalloc.start()
    try:
        for number in range(10_000):
            buckets.add((float(number), 1.0, 2.0, 3.0))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 200_000, "a row of four floats that was kept would take 100 bytes and more"


def test_a_capacity_that_cannot_be_halved_is_refused() -> None:
    with pytest.raises(ValueError, match="even"):
        Buckets(1, capacity=7)
