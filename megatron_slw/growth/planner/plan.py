"""Two and more stages put together: where to grow, where to go on, where to stop, and what that saves.

Growing keeps the loss. So a stage goes on at the point of its own curve where it would have had that loss, and a plan
costs the stretches between these points. These are figures of curves trained, or predicted, from scratch: that a grown
model follows the larger one's curve is what arXiv 2203.06211 found, and what a plan takes for granted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from megatron_slw.growth.planner.law import Law, best_growth_loss, kaplan, optimal_slope


@dataclass(frozen=True)
class Published:
    """What the code of arXiv 2203.06211 has for a growth."""

    slope: float
    """d log loss / d log compute at which to grow."""
    position: float
    """Share of the small model's steps at which the large one goes on."""


PUBLISHED = {(2.0, 1.0): Published(-0.0575, 0.708), (1.0, 2.0): Published(-0.0475, 0.563),
             (2.0, 2.0): Published(-0.03, 0.407)}  # fmt: skip
"""By (depth, width) factor."""


def growth_slope(depth: float, width: float) -> float:
    """The slope at which to grow by these factors: the published one, else the best by Kaplan's law.

    The law's does not depend on the size grown from: -0.0598 for twice the parameters, -0.0519 for four times.
    """
    known = PUBLISHED.get((depth, width))
    if known is not None:
        return known.slope
    small = kaplan(1e8)
    loss = best_growth_loss(small, kaplan(1e8 * depth * width**2))
    return small.slope(loss) if math.isfinite(loss) else optimal_slope()


@dataclass(frozen=True)
class Growth:
    """From one stage to the next."""

    slope: float
    """Of the smaller model's curve there."""
    loss: float
    before: float
    """Steps or tokens on the smaller model's curve."""
    after: float
    """The same loss on the larger one's."""

    @property
    def position(self) -> float:
        """rho, what `grow_checkpoint.py --position` takes."""
        return self.after / self.before


@dataclass(frozen=True)
class Plan:
    """A run in stages."""

    growths: tuple[Growth, ...]
    stop: float
    """Steps or tokens on the last stage's curve."""
    stop_loss: float
    compute: float
    """FLOPs of all stages."""
    compute_from_scratch: float
    """FLOPs of the last stage's model to the same loss."""

    @property
    def lengths(self) -> tuple[float, ...]:
        """Steps or tokens to train each stage."""
        begins = [0.0, *(growth.after for growth in self.growths)]
        ends = [*(growth.before for growth in self.growths), self.stop]
        return tuple(end - begin for begin, end in zip(begins, ends, strict=True))

    @property
    def saved(self) -> float:
        """Share of the compute from scratch that is not needed."""
        return 1.0 - self.compute / self.compute_from_scratch


def make_plan(laws: Sequence[Law], slopes: Sequence[float | None], stop_slope: float | None = None) -> Plan | None:
    """The plan for models with these curves, smallest first.

    Args:
        laws: at least two.
        slopes: of each growth, below 0; None grows where it saves the most.
        stop_slope: of the last curve, where it ends; None is `optimal_slope` at its batch.

    Returns:
        None where there is none: a curve is never that steep, or a stage would end before it begins.
    """
    growths = []
    for (small, large), slope in zip(pairwise(laws), slopes, strict=True):
        loss = best_growth_loss(small, large) if slope is None else small.loss_at_slope(slope)
        if not math.isfinite(loss):
            return None
        growths.append(Growth(small.slope(loss), loss, small.done(loss), large.done(loss)))
    stop_loss = laws[-1].loss_at_slope(optimal_slope(laws[-1].batch_power) if stop_slope is None else stop_slope)
    losses = [*(growth.loss for growth in growths), stop_loss]
    if not math.isfinite(stop_loss) or any(first <= second for first, second in pairwise(losses)):
        return None
    begun = [0.0, *(law.compute(growth.loss) for law, growth in zip(laws[1:], growths, strict=True))]
    compute = sum(law.compute(loss) - start for law, loss, start in zip(laws, losses, begun, strict=True))
    last = laws[-1]
    return Plan(tuple(growths), last.done(stop_loss), stop_loss, compute, last.compute(stop_loss))


@dataclass(frozen=True)
class Interval:
    """A figure and the interval that holds it in nine of ten cases, as far as the noise of the curves goes."""

    value: float
    low: float
    high: float

    @property
    def is_wide(self) -> bool:
        """Whether it says little: its ends differ twofold, or have different signs."""
        return not (0.0 < self.low <= self.high < 2.0 * self.low)


@dataclass(frozen=True)
class Estimate:
    """A plan with its uncertainty."""

    plan: Plan
    slopes: tuple[Interval, ...]
    losses: tuple[Interval, ...]
    lengths: tuple[Interval, ...]
    """As `Plan.lengths`; the first is the growth point on the first curve."""
    positions: tuple[Interval, ...]
    stop: Interval
    stop_loss: Interval
    saved: Interval


def estimate(
    laws: Sequence[Law],
    resampled: Sequence[Sequence[Law]],
    slopes: Sequence[float | None],
    stop_slope: float | None = None,
) -> Estimate | None:
    """`make_plan` with intervals; None where there is no plan, or none for one in ten of the resampled curves.

    Args:
        laws: one for each stage.
        resampled: for each stage, equally many laws that noise would have given.
        slopes: as `make_plan`'s.
        stop_slope: as `make_plan`'s.
    """
    plan = make_plan(laws, slopes, stop_slope)
    found = [make_plan(row, slopes, stop_slope) for row in zip(*resampled, strict=True)]
    others = [other for other in found if other is not None]
    if plan is None or len(others) < 0.9 * len(found):
        return None

    def interval(value: float, among: Sequence[float]) -> Interval:
        low, high = np.percentile([*among, value], [5.0, 95.0])
        return Interval(value, float(low), float(high))

    def columns(rows: Sequence[Sequence[float]]) -> tuple[Interval, ...]:
        return tuple(interval(column[0], column[1:]) for column in zip(*rows, strict=True))

    def of_growths(name: str) -> tuple[Interval, ...]:
        return columns([[getattr(growth, name) for growth in each.growths] for each in (plan, *others)])

    def of_plan(name: str) -> Interval:
        return interval(getattr(plan, name), [getattr(other, name) for other in others])

    return Estimate(
        plan, of_growths("slope"), of_growths("loss"), columns([each.lengths for each in (plan, *others)]),
        of_growths("position"), of_plan("stop"), of_plan("stop_loss"), of_plan("saved"),
    )  # fmt: skip
