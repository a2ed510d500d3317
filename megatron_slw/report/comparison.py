"""What two runs are compared by: the cost of reaching a loss, and how strongly two quantities move together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Reached:
    """Where a run first had a loss of at most the target."""

    position: tuple[float, ...]
    """On each clock, in the order that was given; nan on a clock the run does not have."""
    at_first: bool
    """The first evaluation was already there: the run was it at this position or before."""


def reach(positions: Sequence[Sequence[float]], losses: Sequence[float], target: float) -> Reached | None:
    """Return where the validation loss first came down to `target`; None where it never did.

    Between the evaluation above the target and the next, which is at or below it, the loss is taken to fall on
    a straight line, on every clock alike. Evaluations whose loss is not finite are skipped.

    Args:
        positions: of each evaluation, on each clock.
        losses: of each evaluation.
        target: in the unit of the losses.
    """
    known = [pair for pair in zip(positions, losses, strict=True) if math.isfinite(pair[1])]
    for number, (after, loss) in enumerate(known):
        if loss > target:
            continue
        if number == 0:
            return Reached(tuple(after), at_first=True)
        before, above = known[number - 1]
        share = (above - target) / (above - loss)
        return Reached(tuple(a + share * (b - a) for a, b in zip(before, after, strict=True)), at_first=False)
    return None


@dataclass(frozen=True)
class Pearson:
    """A correlation coefficient over `count` pairs."""

    r: float
    """-1 to 1."""
    p: float | None
    """Chance of at least this |r| without any correlation, two-sided, by Fisher's z transformation, for pairs
    independent of each other; the steps of a run are not quite, so it is too small. None below 4 pairs."""
    count: int


class Correlation:
    """Pearson's r of a stream of pairs, in constant memory and without cancellation (Welford's updates)."""

    def __init__(self) -> None:
        self._count = 0
        self._mean_x = self._mean_y = 0.0
        self._xx = self._yy = self._xy = 0.0

    def add(self, x: float, y: float) -> None:
        """Take a pair; one with a value that is not finite is left out."""
        if not (math.isfinite(x) and math.isfinite(y)):
            return
        self._count += 1
        dx, dy = x - self._mean_x, y - self._mean_y
        self._mean_x += dx / self._count
        self._mean_y += dy / self._count
        self._xx += dx * (x - self._mean_x)
        self._yy += dy * (y - self._mean_y)
        self._xy += dx * (y - self._mean_y)

    def result(self) -> Pearson | None:
        """The coefficient; None where one of the two never changed, or with fewer than 2 pairs."""
        spread = math.sqrt(self._xx) * math.sqrt(self._yy)
        if not 0 < spread < math.inf or not math.isfinite(self._xy):
            return None
        r = min(1.0, max(-1.0, self._xy / spread))
        p = None
        if self._count > 3:
            z = math.atanh(r) if abs(r) < 1 else math.inf
            p = math.erfc(abs(z) * math.sqrt(self._count - 3) / math.sqrt(2))
        return Pearson(r, p, self._count)
