"""Axes: where ticks are, how they read, which unit an axis has."""

from __future__ import annotations

import math

import pytest

from megatron_slw.report.scales import Scale, clock_unit, value_scale


@pytest.mark.parametrize(
    ("scale", "texts"),
    [
        (Scale(0.0, 100.0), ["0", "20", "40", "60", "80", "100"]),
        (Scale(5.1, 7.9), ["5.5", "6.0", "6.5", "7.0", "7.5"]),
        (Scale(0.0, 2500.0), ["0", "500", "1,000", "1,500", "2,000", "2,500"]),
        (Scale(2.001, 2.0095), ["2.002", "2.004", "2.006", "2.008"]),
        (Scale(0.5, 200.0, log=True), ["1", "10", "100"]),
        (Scale(1.0, 60.0, log=True), ["1", "2", "5", "10", "20", "50"]),
        (Scale(1e-9, 1e9, log=True), ["1e-09", "1e-06", "0.001", "1", "1000", "1e+06", "1e+09"]),
    ],
)
def test_ticks_are_round_and_inside(scale: Scale, texts: list[str]) -> None:
    assert [text for _, text in scale.ticks(6)] == texts
    assert all(-1e-9 <= scale.place(value) <= 1 + 1e-9 for value, _ in scale.ticks(6))


def test_places() -> None:
    assert [Scale(2.0, 4.0).place(value) for value in (2, 3, 4, 5)] == [0, 0.5, 1, 1.5]
    log = Scale(0.1, 10.0, log=True)
    assert log.place(1.0) == pytest.approx(0.5) and log.place(0.0) == -math.inf


@pytest.mark.parametrize("values", [[], [math.nan], [0.0], [3.0], [-1.0, 1.0], [1e-12, 1e12], [1e99, -1e99]])
def test_a_scale_holds_its_values_and_has_ticks(values: list[float]) -> None:
    scale = value_scale(values)
    assert scale.low < scale.high
    assert all(0 <= scale.place(value) <= 1 for value in values if math.isfinite(value))
    assert 1 <= len(scale.ticks(6)) <= 14


def test_much_spread_is_logarithmic() -> None:
    assert value_scale([1.0, 51.0]).log and not value_scale([1.0, 49.0]).log and not value_scale([0.0, 51.0]).log


@pytest.mark.parametrize(
    ("clock", "end", "size", "text"),
    [
        ("step", 58_769, 1, "optimizer steps"),
        ("tokens", 900, 1, "tokens"),
        ("tokens", 819_200, 1e3, "thousand tokens"),
        ("tokens", 157.29e9, 1e9, "billion tokens"),
        ("time", 90, 1, "seconds"),
        ("time", 600, 60, "minutes"),
        ("time", 53_640, 3600, "hours"),
        ("time", 500_000, 86_400, "days"),
        ("flops", 1.53e21, 1e21, "10²¹ FLOPs"),
        ("flops", 0, 1, "FLOPs"),
    ],
)
def test_units(clock: str, end: float, size: float, text: str) -> None:
    unit = clock_unit(clock, end)
    assert (unit.size, unit.text) == (size, text)
