"""What benchmarks/growth_quality.py reads out of the curves of its chains. Pure functions.

A point of a curve is the mean of AVERAGED evaluations in a row, because one alone is noisy where the rate does not
decay; it stands where the last of them does, so that averaging makes nothing look earlier. Between two points the loss
falls on a straight line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.slw_quality_evaluation import spread

AVERAGED = 3


@dataclass(frozen=True)
class Point:
    """An evaluation of a chain."""

    flops: float
    """Of all stages so far; evaluation and growth, which trains nothing, are not in it."""
    seconds: float
    """CPU time of these steps."""
    tokens: float
    """On the chain's clock, which goes on over a growth."""
    loss: float
    """Validation loss at full length, nats per token."""
    stage: int
    """From 1 on."""
    seq_len: int
    """Of the step before."""


def averaged(losses: Sequence[float]) -> list[float]:
    """The mean of each loss and those before it, AVERAGED in all, fewer at the beginning."""
    windows = [losses[max(0, i - AVERAGED + 1) : i + 1] for i in range(len(losses))]
    return [sum(window) / len(window) for window in windows]


def reached(curve: Sequence[Point], loss: float) -> tuple[float, float] | None:
    """FLOPs and seconds at which the averaged loss first is `loss` or less; None if it never is."""
    means = averaged([point.loss for point in curve])
    for i, mean in enumerate(means):
        if mean > loss:
            continue
        if i == 0:
            return curve[0].flops, curve[0].seconds
        before, share = curve[i - 1], (means[i - 1] - loss) / (means[i - 1] - mean)
        return (
            before.flops + share * (curve[i].flops - before.flops),
            before.seconds + share * (curve[i].seconds - before.seconds),
        )
    return None


def figures(curve: Sequence[Point], target: float, baseline: Point) -> dict[str, Any]:
    """Of one chain.

    Args:
        curve: its evaluations.
        target: the loss to reach: the averaged last one of the same seed's baseline.
        baseline: the last point of that.
    """
    there = reached(curve, target)
    growths = [after for before, after in zip(curve, curve[1:], strict=False) if after.stage != before.stage]
    return {
        "flops": curve[-1].flops,
        "final_loss": averaged([point.loss for point in curve])[-1],
        "best_loss": min(averaged([point.loss for point in curve])),
        "target": target,
        "flops_to_target": None if there is None else there[0],
        "seconds_to_target": None if there is None else there[1],
        "saved_flops": None if there is None else 1.0 - there[0] / baseline.flops,
        "saved_seconds": None if there is None else 1.0 - there[1] / baseline.seconds,
        "grown_at_flops": [_before(curve, point).flops for point in growths],
        "loss_jump": [point.loss - _before(curve, point).loss for point in growths],
        "curve": [[point.flops, point.loss, point.stage, point.seq_len] for point in curve],
    }


def _before(curve: Sequence[Point], point: Point) -> Point:
    return curve[curve.index(point) - 1]


def summarize(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over the seeds of one arm; of savings over those that came to the target."""
    names = ("saved_flops", "saved_seconds", "flops_to_target", "seconds_to_target", "final_loss")
    there = [run for run in runs if run["flops_to_target"] is not None]
    return {"seeds": len(runs), "reached": len(there), **{name: _spread(runs, name) for name in names}}


def _spread(runs: Sequence[Mapping[str, Any]], name: str) -> dict[str, float] | None:
    return spread([run[name] for run in runs if run[name] is not None])
