"""What benchmarks/slw_quality.py reads out of the metrics of its runs. Pure functions.

A loss ratio is a step's loss over the lowest before it. Between two evaluations the loss is taken to fall on a straight
line.
"""

from __future__ import annotations

import math
import statistics
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any

from megatron_slw.report.comparison import Correlation, Reached, reach
from megatron_slw.slw.stability import RATIO_LIMIT

Record = Mapping[str, Any]
StepCost = tuple[int, float]
"""FLOPs of a step, seconds it takes. FLOPs, because tokens that are computed but not trained cost as much."""
CLOCKS = ("tokens", "flops", "seconds")
_NO_MEAN = ("seed", "rate", "diverged")


def step_seconds(flops: float, costs: Sequence[StepCost]) -> float:
    """Seconds of a step of so many FLOPs: straight lines between the measured ones, and beyond the outermost two.

    Args:
        flops: of the step.
        costs: at least two, by rising FLOPs.
    """
    right = min(max(bisect_left([count for count, _ in costs], flops), 1), len(costs) - 1)
    (low, before), (high, after) = costs[right - 1], costs[right]
    return before + (flops - low) / (high - low) * (after - before)


def clocks(steps: Sequence[Record], costs: Sequence[StepCost]) -> dict[int, tuple[float, float, float]]:
    """Tokens, FLOPs and seconds spent up to each step; seconds are nan without `costs`."""
    result = {0: (0.0, 0.0, 0.0)}
    seconds, flops = 0.0, 0
    for record in steps:
        seconds += step_seconds(record["flops"] - flops, costs) if costs else math.nan
        flops = record["flops"]
        result[record["step"]] = (float(record["tokens"]), float(flops), seconds)
    return result


def run_figures(
    steps: Sequence[Record], evaluations: Sequence[Record], costs: Sequence[StepCost], warmup_steps: int, planned: bool
) -> dict[str, Any]:
    """The figures of one run.

    Args:
        steps: the step records of metrics.jsonl.
        evaluations: its evaluation records.
        costs: measured seconds of steps by their FLOPs; may be empty.
        warmup_steps: of the learning rate; `loss_ratio_max` is over the steps after it.
        planned: whether the run came to its planned end.
    """
    position = clocks(steps, costs)
    known = [(record["step"], round(record["val_loss"], 5)) for record in evaluations if record["val_loss"] is not None]
    ratios = [(r["step"], r["loss_ratio"]) for r in steps if r["loss_ratio"] is not None]
    best = min(loss for _, loss in known)
    correlation = Correlation()
    for record in steps:
        correlation.add(_number(record["loss_ratio"]), _number(record["variance_sqrt_abs_max"]))
    pearson = correlation.result()
    tokens, flops, seconds = position[steps[-1]["step"]]
    return {
        "steps": len(steps), "tokens": tokens, "flops": flops, "seconds": seconds,
        "tokens_discarded": steps[-1]["tokens_discarded"],
        "final_val_loss": known[-1][1], "best_val_loss": best,
        "loss_ratio_count": sum(ratio > RATIO_LIMIT for _, ratio in ratios),
        "loss_ratio_max": max((ratio for step, ratio in ratios if step > warmup_steps), default=math.nan),
        "spike_score": steps[-1]["spike_score"],
        "grad_norm_max": max((_number(r["grad_norm"]) for r in steps if r["step"] > warmup_steps), default=math.nan),
        "pearson_ratio_variance_max": math.nan if pearson is None else pearson.r,
        "diverged": diverged(best, known[-1][1], planned),
        "curve": [[*(round(at, 3) for at in position[step]), loss] for step, loss in known],
    }  # fmt: skip


def diverged(best: float, final: float, planned: bool) -> bool:
    """A run that broke off, or ended with a perplexity more than 1.3 times its best: it never came back."""
    return not planned or final - best > math.log(1.3)


def time_to(curve: Sequence[Sequence[float]], target: float) -> dict[str, float] | None:
    """Tokens, FLOPs and seconds at which the validation loss first was `target` or less; None if it never was.

    Args:
        curve: (*CLOCKS, validation loss) of each evaluation.
        target: in nats.
    """
    found: Reached | None = reach([point[:3] for point in curve], [point[3] for point in curve], target)
    return None if found is None else dict(zip(CLOCKS, found.position, strict=True))


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Mean, and standard deviation dividing by n - 1, of the values that are finite; None without any."""
    finite = [float(value) for value in values if math.isfinite(value)]
    if not finite:
        return None
    deviation = statistics.stdev(finite) if len(finite) > 1 else math.nan
    return {"mean": statistics.fmean(finite), "stdev": deviation, "count": len(finite)}


def summarize(runs: Mapping[str, Sequence[Record]], references: Mapping[str, str], fixed: float) -> dict[str, Any]:
    """Mean and spread over the seeds of each arm.

    Args:
        runs: by arm, what `run_figures` gives for each seed, and the seed.
        references: by arm, the arm whose best validation loss is to be reached, each seed's by the same seed.
        fixed: another validation loss to reach, the same for all.
    """
    result = {}
    best = {arm: {figures["seed"]: figures["best_val_loss"] for figures in seeds} for arm, seeds in runs.items()}
    for arm, seeds in runs.items():
        names = [name for name, value in seeds[0].items() if name not in _NO_MEAN and isinstance(value, int | float)]
        targets = best.get(references[arm], {})
        paired = [(figures, targets[figures["seed"]]) for figures in seeds if figures["seed"] in targets]
        result[arm] = {
            "seeds": len(seeds),
            "diverged": sum(figures["diverged"] for figures in seeds),
            **{name: spread([figures[name] for figures in seeds]) for name in names},
            "reference": references[arm],
            "to_reference": _reached([time_to(figures["curve"], target) for figures, target in paired]),
            "to_fixed": _reached([time_to(figures["curve"], fixed) for figures in seeds]),
            "final_below_reference": spread([target - figures["final_val_loss"] for figures, target in paired]),
        }
    return result


def _reached(places: Sequence[Mapping[str, float] | None]) -> dict[str, Any]:
    """How many seeds got there, and at what cost those did."""
    there = [place for place in places if place is not None]
    return {"seeds": len(there), **{clock: spread([place[clock] for place in there]) for clock in CLOCKS}}


def without_nan(value: Any) -> Any:
    """JSON has no NaN: null in its place, at any depth."""
    if isinstance(value, Mapping):
        return {key: without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: float | None) -> float:
    return math.nan if value is None else value
