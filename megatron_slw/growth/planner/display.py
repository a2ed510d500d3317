"""A plan as a person reads it, and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import pairwise
from typing import Any

from megatron_slw.growth.planner.calibration import Calibrated
from megatron_slw.growth.planner.inputs import Stage, describe, factors, is_extrapolated
from megatron_slw.growth.planner.plan import PUBLISHED, Estimate, Interval
from megatron_slw.growth.planner.points import Points
from megatron_slw.train.units import count_text

Plans = Mapping[str, Estimate | None]
Row = tuple[str, Callable[[Estimate], Interval], Callable[[float], str]]
NOT_LOW = 0.5
"""Share of its peak below which a learning rate bends a curve down by itself."""


def curves(stages: Sequence[Stage]) -> str:
    """What each stage's curve is, one line each."""
    return "\n".join(_curve(stage) for stage in stages)


def _curve(stage: Stage) -> str:
    law = stage.law
    if stage.fit is None or stage.points is None:
        return f"{describe(stage)}: predicted, its loss ends at {law.floor:.2f} (Kaplan's law, arXiv 2001.08361)"
    first, last = (stage.points.step(tokens) for tokens in (stage.fit.first, stage.fit.last))
    unit = count_text(law.scale ** (1.0 / law.exponent))
    return (
        f"{describe(stage)}: {stage.fit.points} {stage.points.kind} losses of steps {first:,.0f} to {last:,.0f}; "
        f"loss = {law.floor:.2f} + (tokens / {unit})^-{law.exponent:.2f}, points {stage.fit.noise:.4f} off it"
    )


def table(stages: Sequence[Stage], plans: Plans, calibrated: Calibrated | None = None) -> str:
    """The plans side by side, a row for each figure; what could not be had is a dash.

    Args:
        stages: of the plans.
        plans: by what they are.
        calibrated: is shown beside the position of its growth.
    """
    if not any(plans.values()):
        return "There is no plan."
    rows = [["", *plans]]
    for label, figure, number in _rows(stages, calibrated):
        rows.append([label, *("-" if plan is None else _cell(figure(plan), number) for plan in plans.values())])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _rows(stages: Sequence[Stage], calibrated: Calibrated | None) -> list[Row]:
    """Label, figure and form."""
    rows: list[Row] = []
    points = None
    for i, stage in enumerate(stages):
        points = stage.points or points
        step = "step" if points is not None else "critical-batch step"
        goal = f"to {step}" if i == 0 else f"for {step}s"
        rows.append((f"train {describe(stage)} {goal}", partial(_at, "lengths", i), partial(_steps, points, i > 0)))
        if i + 1 < len(stages):
            rows += [
                ("  loss there", partial(_at, "losses", i), "{:.3f}".format),
                ("  slope there", partial(_at, "slopes", i), "{:.4f}".format),
                (_position_label(stage, stages[i + 1], calibrated), partial(_at, "positions", i), "{:.3f}".format),
            ]
    return [
        *rows,
        ("  loss there", lambda plan: plan.stop_loss, "{:.3f}".format),
        ("compute saved", lambda plan: plan.saved, lambda value: f"{100 * value:.1f} %"),
    ]


def _at(name: str, index: int, plan: Estimate) -> Interval:
    found: Interval = getattr(plan, name)[index]
    return found


def _steps(points: Points | None, is_length: bool, value: float) -> str:
    if points is None:
        return f"{value:,.0f}"
    return f"{value / points.tokens_per_step if is_length else points.step(value):,.0f}"


def _position_label(small: Stage, large: Stage, calibrated: Calibrated | None) -> str:
    pair = factors(small, large)
    if calibrated is not None and pair == calibrated.factors:
        return f"  grow, --position (calibrated {calibrated.position.value:.3f})"
    found = PUBLISHED.get(pair) if pair is not None else None
    return "  grow, --position" + (f" (published {found.position})" if found is not None else "")


def _cell(interval: Interval, number: Callable[[float], str]) -> str:
    if interval.low == interval.high:
        return number(interval.value)
    return f"{number(interval.value)} ({number(interval.low)} to {number(interval.high)})"


def doubts(stages: Sequence[Stage], plans: Plans) -> list[str]:
    """What the figures do not say, one sentence each."""
    found = []
    for stage in stages:
        if stage.points is not None and stage.points.rate_left < NOT_LOW:
            found.append(
                f"{stage.name}: the learning rate has fallen to {100 * stage.points.rate_left:.0f} % of its peak, "
                "which makes the curve steeper than that of a longer run."
            )
    if any(not stage.is_measured for stage in stages) and any(stage.is_measured for stage in stages):
        found.append("the intervals hold the noise of the measured curves, not the error of a predicted one.")
    for small, large in pairwise(stages):
        pair = factors(small, large)
        if pair is not None and pair not in PUBLISHED:
            found.append(
                f"{describe(small)} to {describe(large)}: no slope is published for it; it is that of Kaplan's law."
            )
    for name, plan in plans.items():
        found += [f"{name}: {doubt}" for doubt in _plan_doubts(stages, plan)]
    return found


def _plan_doubts(stages: Sequence[Stage], plan: Estimate | None) -> list[str]:
    if plan is None:
        return [
            "there is no such plan, or noise decides whether there is one: a curve is never that steep, or a stage "
            "would end before it begins."
        ]
    found = []
    ends = [*(growth.before for growth in plan.plan.growths), plan.plan.stop]
    for stage, end, length in zip(stages, ends, plan.lengths, strict=True):
        if stage.is_measured and is_extrapolated(stage, end):
            found.append(f"{describe(stage)} was not trained that far; where its stage ends is extrapolated.")
        if length.is_wide:
            found.append(f"the length of the stage {describe(stage)} is not determined yet. Train on.")
    if plan.saved.low <= 0.0 <= plan.saved.high:
        found.append("whether it saves anything is not determined.")
    return found


def to_json(stages: Sequence[Stage], plans: Plans) -> dict[str, Any]:
    """Everything, for programs: tokens are the unit of measured curves, steps that of the published law."""
    return {
        "stages": [
            {
                "name": stage.name,
                "layers": stage.size.layers if stage.size else None,
                "hidden_size": stage.size.hidden if stage.size else None,
                "law": asdict(stage.law),
                "measured": stage.is_measured,
                "tokens_per_step": stage.points.tokens_per_step if stage.points else None,
            }
            for stage in stages
        ],
        "plans": {name: None if plan is None else _plan_json(stages, plan) for name, plan in plans.items()},
        "doubts": doubts(stages, plans),
    }


def _plan_json(stages: Sequence[Stage], plan: Estimate) -> dict[str, Any]:
    first = stages[0].points
    names = ("lengths", "losses", "slopes", "positions")
    return {
        "grow_step": first.step(plan.plan.growths[0].before) if first is not None else None,
        **{name: [asdict(interval) for interval in getattr(plan, name)] for name in names},
        "stop": asdict(plan.stop),
        "stop_loss": asdict(plan.stop_loss),
        "compute": plan.plan.compute,
        "compute_from_scratch": plan.plan.compute_from_scratch,
        "saved": asdict(plan.saved),
    }
