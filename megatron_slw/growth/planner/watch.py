"""Whether a run has come to its growth point, asked at each evaluation."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_slw.growth.planner.fit import fit
from megatron_slw.growth.planner.points import Reader, TooShort

AGREEING = 0.9
"""Share of the resampled curves that must say so too: noise alone should not end a stage."""
RESAMPLES = 100


@dataclass(frozen=True)
class Reached:
    """The growth point is here or behind."""

    step: int
    slope: float
    """Of the fitted curve at the last step."""

    def __str__(self) -> str:
        return f"growth point at step {self.step:,}: the validation loss falls with a slope of {self.slope:.4f}"


def growth_point(reader: Reader, slope: float) -> Reached | None:
    """Whether the validation curve that `reader` has read is flatter than `slope` at its end.

    A pure function of the records, so that a resume decides as the run that was killed.

    Args:
        reader: of the run's records up to an evaluation.
        slope: d log loss / d log compute, below 0.

    Returns:
        None while it is steeper, while there are too few validation losses at full length, and while noise decides.
    """
    try:
        points = reader.points()
    except TooShort:
        return None
    if points.kind != "validation":
        return None
    found = fit(points.tokens, points.losses, 1.0, resamples=RESAMPLES)
    slopes = [law.slope(law.loss(found.last)) for law in (found.law, *found.resampled)]
    if slopes[0] < slope or sum(one >= slope for one in slopes[1:]) < AGREEING * RESAMPLES:
        return None
    return Reached(points.last_step, slopes[0])
