"""A calibration before and after its runs: what it will cost, what it found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from megatron_slw.config.errors import ConfigError
from megatron_slw.growth.planner import calibration_display
from megatron_slw.growth.planner.calibration import calibrate, to_json
from megatron_slw.growth.planner.display import curves
from megatron_slw.growth.planner.inputs import describe, factors, measured_stage
from megatron_slw.growth.sizes import describe as describe_model
from megatron_slw.train.calibrate_run import RESULT_NAME, Side
from megatron_slw.train.tune_state import write_json

NOT_A_LAW = 0.03
"""Nats that the points of a curve may lie off its law on the average."""


def announcement(small: Side, target: Side) -> str:
    """What will be trained, a line for each model."""
    lines = []
    for side in (small, target):
        if side.config is None:
            lines.append(f"{side.name}: {side.run}, made before")
            continue
        losses = side.losses()
        begun = f", begun: step {losses[-1][0]:,}" if losses else ""
        most = "at most, to the small model's last loss, " if side.name == "target" else ""
        lines.append(
            f"{side.name}: {describe_model(side.config.model)}, {side.steps:,} steps {most}{side.flops:.3g} FLOPs"
            f"{begun}"
        )
    return "\n".join(lines)


def judge(small: Side, target: Side, output: Path, left_out: float, say: Callable[[str], None]) -> int:
    """Compare the two curves, print the result and write it; the exit status: 1 where growing gains nothing.

    Args:
        small: a run.
        target: another, of a larger model.
        output: gets RESULT_NAME.
        left_out: share of each run's tokens at its beginning that are left out.
        say: is told.

    Raises:
        ConfigError: a run has no curve yet, or they are of other models than asked for.
    """
    stages = [measured_stage(str(side.run), left_out) for side in (small, target)]
    first, second = stages
    pair = factors(first, second)
    if pair is None:
        raise ConfigError(f"{small.run} or {target.run} has no config.json, which says how large its model is.")
    if second.law.cost <= first.law.cost:
        raise ConfigError(f"{describe(second)} is not larger than {describe(first)}: give the small model first.")
    say(curves(stages))
    assert first.points is not None and second.points is not None, "both are measured"
    found = calibrate(
        (first.law, second.law), (first.resampled, second.resampled), (first.points, second.points), pair
    )
    for side, stage in ((small, first), (target, second)):
        if stage.fit is not None and stage.fit.noise > NOT_A_LAW:
            say(
                f"note: the points of {side.name} lie {stage.fit.noise:.3f} nats off their law: it is none for the "
                "whole of this curve. Leave out its beginning by a larger --leave-out."
            )
    if found is None:
        say(
            "\nNo growth point: the small model has every loss for less compute, as its curve has not flattened yet, "
            "or the larger one has, or noise decides. Train on, or validate on more samples."
        )
        return 1
    say(f"\n{calibration_display.table(first, second, found)}\n\n{calibration_display.conclusion(found)}")
    for doubt in calibration_display.doubts(first, second, found):
        say(f"note: {doubt}")
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / RESULT_NAME, to_json(found))
    return 0
