"""The two numbers that a staged training needs, off measured curves: where to grow, where the larger model goes on.

tau is the slope of the small model's curve where growing saves the most, rho the share of its tokens after which the
larger model, trained from scratch, has the same loss (arXiv 2203.06211 reads both off by hand). Both come from laws
fitted to the curves, with what noise does to them; rho is also read off the measured points themselves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_slw.config.errors import ConfigError, show
from megatron_slw.config.json_file import read_json
from megatron_slw.growth.planner.law import Law, best_growth_loss
from megatron_slw.growth.planner.plan import Interval
from megatron_slw.growth.planner.points import Points

AVERAGED = 5
"""Points in a running mean."""
ROWS = 7
"""Growth points shown."""
VERSION = 1


@dataclass(frozen=True)
class Equivalent:
    """A growth at one loss."""

    loss: float
    slope: float
    """Of the small model's curve, d log loss / d log compute."""
    before: float
    """The small model's tokens."""
    after: float
    """The larger model's, from scratch, at the same loss."""
    position: Interval
    """rho."""
    read_off: float
    """rho off the points, without a law; nan where they do not come to this loss."""
    saved: float
    """FLOPs that growing there saves."""


@dataclass(frozen=True)
class Calibration:
    """What was found, for growths by these factors."""

    depth: float
    width: float
    slope: Interval
    """tau"""
    position: Interval
    """rho"""
    best: Equivalent
    """Where growing saves the most."""
    others: tuple[Equivalent, ...]
    """Earlier and later growths."""


def calibrate(
    laws: tuple[Law, Law], resampled: tuple[Sequence[Law], Sequence[Law]], points: tuple[Points, Points],
    factors: tuple[float, float],
) -> Calibration | None:
    """tau and rho of a pair, the smaller model first.

    Args:
        laws: fitted, in tokens.
        resampled: equally many that noise would have given, of each.
        points: what they were fitted to.
        factors: of depth and width.

    Returns:
        None where growing saves nothing, or noise decides whether it does.
    """  # fmt: skip
    small, large = laws
    pairs = list(zip(*resampled, strict=True))
    loss = best_growth_loss(small, large)
    found = [(pair, best_growth_loss(*pair)) for pair in pairs]
    good = [(pair, best) for pair, best in found if math.isfinite(best)]
    if not math.isfinite(loss) or len(good) < 0.9 * len(found):
        return None
    slope = _interval(small.slope(loss), [pair[0].slope(best) for pair, best in good])
    position = _interval(_share(laws, loss), [_share(pair, best) for pair, best in good])

    def at(loss: float) -> Equivalent:
        shares = [_share(pair, loss) for pair in pairs]
        return Equivalent(
            loss, small.slope(loss), small.done(loss), large.done(loss), _interval(_share(laws, loss), shares),
            _read_off(points, loss), large.compute(loss) - small.compute(loss),
        )  # fmt: skip

    ends = max(_last_loss(curve, law) for curve, law in zip(points, laws, strict=True))
    begin = min(small.loss(points[0].tokens[0]), large.loss(points[1].tokens[0]))
    losses: list[float] = np.linspace(begin, ends, ROWS).tolist() if begin > ends else []
    return Calibration(*factors, slope, position, at(loss), tuple(map(at, losses)))


def _share(laws: tuple[Law, Law], loss: float) -> float:
    small, large = laws
    return large.done(loss) / small.done(loss) if math.isfinite(small.done(loss)) else math.nan


def _interval(value: float, among: Sequence[float]) -> Interval:
    finite = [one for one in (value, *among) if math.isfinite(one)]
    low, high = np.percentile(finite, [5.0, 95.0]) if finite else (math.nan, math.nan)
    return Interval(value, float(low), float(high))


def _last_loss(points: Points, law: Law) -> float:
    return law.loss(points.tokens[-1])


def _read_off(points: tuple[Points, Points], loss: float) -> float:
    small, large = (first_at(curve, loss) for curve in points)
    return large / small


def first_at(points: Points, loss: float) -> float:
    """Tokens at which the running mean of AVERAGED losses first is `loss` or less, between points on a straight line
    over the tokens' logarithm; nan where it never is, or is from the first point on."""
    count = min(AVERAGED, len(points.losses))
    window = np.ones(count) / count
    losses = np.convolve(points.losses, window, "valid")
    times = np.convolve(np.log(points.tokens), window, "valid")
    below = np.flatnonzero(losses <= loss)
    if not len(below) or below[0] == 0:
        return math.nan
    i = int(below[0])
    share = (losses[i - 1] - loss) / (losses[i - 1] - losses[i])
    return float(np.exp(times[i - 1] + share * (times[i] - times[i - 1])))


def to_json(calibration: Calibration) -> dict[str, Any]:
    """What `read_calibration` reads back, and the table."""
    return _plain({"version": VERSION, **asdict(calibration)})


def _plain(value: Any) -> Any:
    """JSON has no NaN: null in its place."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class Calibrated:
    """tau and rho for growths by these factors, as plan_growth.py takes them."""

    depth: float
    width: float
    slope: Interval
    position: Interval

    @property
    def factors(self) -> tuple[float, float]:
        """Of depth and width."""
        return self.depth, self.width


def read_calibration(path: Path) -> Calibrated:
    """What a calibration.json says.

    Raises:
        ConfigError: it is none, or one of its numbers cannot be.
    """
    try:
        tree = read_json(path)
        if tree.get("version") != VERSION:
            raise ConfigError(f"has version {show(tree.get('version'))}, not {VERSION}.")
        slope = _read_interval(tree, "slope", -10.0, 0.0)
        position = _read_interval(tree, "position", 0.0, 10.0)
        depth, width = (_number(tree.get(name), name, 0.99, 1024.0) for name in ("depth", "width"))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error} Give the calibration.json of calibrate_growth.py.") from None
    return Calibrated(depth, width, slope, position)


def _read_interval(tree: Mapping[str, Any], name: str, least: float, most: float) -> Interval:
    value = tree.get(name)
    if not isinstance(value, dict) or set(value) != {"value", "low", "high"}:
        raise ConfigError(f"{name} must have value, low and high, but is {show(value)}.")
    return Interval(**{key: _number(entry, f"{name}.{key}", least, most) for key, entry in value.items()})


def _number(value: object, name: str, least: float, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least < value < most:
        raise ConfigError(f"{name} must be a number between {least:g} and {most:g}, but is {show(value)}.")
    return float(value)
