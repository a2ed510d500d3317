"""A calibration as a person reads it."""

from __future__ import annotations

import math

from megatron_slw.growth.planner.calibration import Calibration, Equivalent
from megatron_slw.growth.planner.inputs import Stage, describe, is_extrapolated
from megatron_slw.growth.planner.plan import PUBLISHED, Interval
from megatron_slw.growth.planner.points import Points


def table(small: Stage, target: Stage, found: Calibration) -> str:
    """Growth points from early to late, the best one marked."""
    points = small.points
    assert points is not None, "a calibration is of measured curves"
    head = ("loss", "slope", "grow at step", "equivalent step", "rho", "read off", "FLOPs saved")
    rows: list[tuple[str, ...]] = [head]
    ordered = sorted((*found.others, found.best), key=lambda row: -row.loss)
    rows += [_row(row, points, target.points, row is found.best) for row in ordered]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.rjust, row, widths)) for row in rows)


def _row(row: Equivalent, small: Points, target: Points | None, is_best: bool) -> tuple[str, ...]:
    after = math.nan if target is None else target.step(row.after)
    return (
        ("best " if is_best else "") + f"{row.loss:.3f}", f"{row.slope:.4f}", f"{small.step(row.before):,.0f}",
        f"{after:,.0f}", _cell(row.position), "-" if math.isnan(row.read_off) else f"{row.read_off:.3f}",
        f"{row.saved:.3g}",
    )  # fmt: skip


def _cell(interval: Interval) -> str:
    return f"{interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f})"


def conclusion(found: Calibration) -> str:
    """tau and rho, and where they go."""
    published = PUBLISHED.get((found.depth, found.width))
    beside = f"   published {published.slope:g} and {published.position:g}" if published is not None else ""
    slope = found.slope
    return (
        f"tau  {slope.value:.4f} ({slope.low:.4f} to {slope.high:.4f})   plan_growth.py --slope, training.grow_slope\n"
        f"rho  {_cell(found.position)}   grow_checkpoint.py --position\n"
        f"for {found.depth:g} x depth and {found.width:g} x width{beside}"
    )


def doubts(small: Stage, target: Stage, found: Calibration) -> list[str]:
    """What the figures do not say."""
    result = []
    for stage, tokens in ((small, found.best.before), (target, found.best.after)):
        if is_extrapolated(stage, tokens):
            result.append(f"{describe(stage)} was not trained to the growth point, which is extrapolated. Train on.")
        elif stage.fit is not None and tokens < stage.fit.first:
            result.append(f"the growth point lies before the first loss of {describe(stage)} that was compared.")
    low, high = -found.slope.high, -found.slope.low
    if not 0.0 < low <= high < 2.0 * low:
        result.append("tau is not determined: its interval is wide. Train on, or validate on more samples.")
    if found.position.is_wide:
        result.append("rho is not determined: its interval is wide. Train on, or validate on more samples.")
    if math.isfinite(found.best.read_off) and not (
        0.8 * found.position.low < found.best.read_off < 1.25 * found.position.high
    ):
        result.append("rho read off the points is another than that of the laws: look at the curves.")
    return result
