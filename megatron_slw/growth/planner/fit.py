"""Fitting a Law to a measured loss curve, with other curves that the noise would have allowed.

Least squares by variable projection: for a given exponent the floor and the scale are linear, so the search is over one
number. Uncertainty by resampling blocks of residuals, because neighbouring validation losses err together.

Legend: R resampled curves, P points, A exponents tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megatron_slw.growth.planner.law import Law

Floats = NDArray[np.float64]
EXPONENTS = np.geomspace(0.02, 4.0, 160)
RESAMPLES = 200
LEAST_POINTS = 8


@dataclass(frozen=True)
class Fit:
    """A law and its uncertainty."""

    law: Law
    resampled: tuple[Law, ...]
    """What other noise of the same size would have given."""
    noise: float
    """Standard deviation of the points about the law, in nats."""
    first: float
    """Steps or tokens of the first point."""
    last: float
    points: int


def fit(done: Sequence[float], losses: Sequence[float], cost: float, seed: int = 0, resamples: int = RESAMPLES) -> Fit:
    """The law through points of one curve.

    Args:
        done: steps or tokens of each point, ascending, above 0; at least LEAST_POINTS.
        losses: of each point, in nats.
        cost: FLOPs of a step or token.
        seed: of the resampling.
        resamples: how many.
    """
    if len(done) < LEAST_POINTS:
        raise ValueError(f"{len(done)} points are too few to fit a curve to, {LEAST_POINTS} are needed")
    done_P, loss_P = np.asarray(done, np.float64), np.asarray(losses, np.float64)
    last = float(done_P[-1])
    ratio_P = done_P / last  # conditioned: scale is then the height above the floor at the last point
    (best,) = _fitted(ratio_P, loss_P[None])
    fitted_P = best[0] + best[1] * ratio_P ** -best[2]
    residual_P = (loss_P - fitted_P) * np.sqrt(len(done_P) / (len(done_P) - 3))
    generator = np.random.default_rng(seed)
    noise_RP = _blocks(residual_P - residual_P.mean(), resamples, generator)
    found = _fitted(ratio_P, fitted_P + noise_RP)
    laws = [_law(values, last, cost) for values in (best, *found)]
    deviation = float(np.sqrt(np.mean(residual_P**2)))
    return Fit(laws[0], tuple(laws[1:]), deviation, float(done_P[0]), last, len(done_P))


def _law(values: Floats, last: float, cost: float) -> Law:
    floor, height, exponent = map(float, values)
    return Law(floor, height * last**exponent, exponent, cost)


def _blocks(residual_P: Floats, resamples: int, generator: np.random.Generator) -> Floats:
    """Residuals put together from blocks of neighbours, around the end: (R, P)."""
    points = len(residual_P)
    length = max(1, round(points ** (1 / 3)))
    starts = generator.integers(points, size=(resamples, -(-points // length)))
    index = (starts[..., None] + np.arange(length)) % points
    return residual_P[index.reshape(resamples, -1)[:, :points]]


def _fitted(ratio_P: Floats, loss_RP: Floats) -> Floats:
    """(floor, height, exponent) of each curve, (R, 3); neither floor nor height is below 0."""
    powers_AP = ratio_P ** -EXPONENTS[:, None]
    error_RA = _solve(powers_AP, loss_RP)[2]
    best_R = error_RA.argmin(axis=1)
    below, above = EXPONENTS[np.maximum(best_R - 1, 0)], EXPONENTS[np.minimum(best_R + 1, len(EXPONENTS) - 1)]
    for _ in range(4):  # narrow the bracket about the best, 8-fold each time
        tried_RA = below[:, None] + (above - below)[:, None] * np.linspace(0.0, 1.0, 17)
        powers_RAP = ratio_P ** -tried_RA[..., None]
        floor_RA, height_RA, error_RA = _solve(powers_RAP, loss_RP)
        best_R = error_RA.argmin(axis=1)
        rows = np.arange(len(best_R))
        below, above = tried_RA[rows, np.maximum(best_R - 1, 0)], tried_RA[rows, np.minimum(best_R + 1, 16)]
    return np.stack([floor_RA[rows, best_R], height_RA[rows, best_R], tried_RA[rows, best_R]], axis=1)


def _solve(powers: Floats, loss_RP: Floats) -> tuple[Floats, Floats, Floats]:
    """Floor, height and squared error (R, A) for each exponent; powers are (A, P), or (R, A, P)."""
    points = loss_RP.shape[1]
    centred = powers - powers.mean(-1, keepdims=True)
    mean_R, loss = loss_RP.mean(1)[:, None], loss_RP[:, :, None]
    height = (centred @ loss)[..., 0] / (centred * centred).sum(-1)
    floor = mean_R - height * powers.mean(-1)
    square = (powers * powers).sum(-1)
    cross = (powers @ loss)[..., 0]
    height = np.where(floor < 0.0, cross / square, height)  # on the edge of what is allowed
    floor = np.maximum(floor, 0.0)
    floor, height = np.where(height < 0.0, mean_R, floor), np.maximum(height, 0.0)
    total = (loss_RP**2).sum(1)[:, None]
    sums = powers.sum(-1)
    error = total - 2 * floor * points * mean_R - 2 * height * cross
    return floor, height, error + points * floor**2 + 2 * floor * height * sums + height**2 * square
