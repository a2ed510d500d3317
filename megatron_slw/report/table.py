"""The numbers of a comparison: where each run reached the target, the rows of the table, and the same as JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from megatron_slw.config.errors import ConfigError
from megatron_slw.report.comparison import Pearson, Reached, reach
from megatron_slw.report.series import CLOCKS, Run
from megatron_slw.slw.stability import RATIO_LIMIT
from megatron_slw.train.units import count_text

UNKNOWN = "–"
NO_BREAK = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True)
class Comparison:
    """Runs side by side, and where each reached the target."""

    runs: tuple[Run, ...]
    target: float | None
    """A validation loss; None where none was given and the first run was never evaluated."""
    target_given: bool
    reached: tuple[Reached | None, ...]
    """Of each run."""


def compare(runs: Sequence[Run], target: float | None = None) -> Comparison:
    """Put runs beside the first; the target is its best validation loss unless another is given.

    Raises:
        ConfigError: the target is no finite number.
    """
    if target is not None and not math.isfinite(target):
        raise ConfigError(f"--target-loss must be a finite number, not {target}")
    goal = best_loss(runs[0]) if target is None else target
    reached = tuple(None if goal is None else _reach(run, goal) for run in runs)
    return Comparison(tuple(runs), goal, target is not None, reached)


def best_loss(run: Run) -> float | None:
    """The lowest validation loss; None without any."""
    return min((loss for _, loss in run.evaluations), default=None)


def _reach(run: Run, target: float) -> Reached | None:
    return reach([position for position, _ in run.evaluations], [loss for _, loss in run.evaluations], target)


def summary(comparison: Comparison) -> dict[str, Any]:
    """The table as JSON; null where a number is not known, `reached` null where the target never was."""
    runs = []
    for run, reached in zip(comparison.runs, comparison.reached, strict=True):
        losses = [loss for _, loss in run.evaluations]
        runs.append(
            {
                "name": run.name,
                **_clocks(run.end),
                "tokens_discarded": run.discarded,
                "final_val_loss": losses[-1] if losses else None,
                "best_val_loss": best_loss(run),
                "reached": None
                if reached is None
                else {**_clocks(reached.position), "at_first_evaluation": reached.at_first},
                "loss_ratio_count": run.spikes,
                "loss_ratio_max": max_ratio(run),
                "spike_score": run.spike_score,
                "pearson": {
                    name: None if found is None else {"r": found.r, "p": found.p, "count": found.count}
                    for name, found in run.correlations.items()
                },
                "resumes": run.resumes,
                "scores": dict(run.scores),
            }
        )
    return {"target_loss": comparison.target, "runs": runs}


def _clocks(position: Sequence[float]) -> dict[str, float | None]:
    step, tokens, flops, seconds = (value if math.isfinite(value) else None for value in position)
    return {"steps": step, "tokens": tokens, "flops": flops, "hours": None if seconds is None else seconds / 3600}


def max_ratio(run: Run) -> float | None:
    """The greatest loss ratio of a step."""
    return float(max(v for v in run.high("loss_ratio") if v == v)) if run.has("loss_ratio") else None


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    label: str
    cells: tuple[str, ...]


def rows(comparison: Comparison) -> list[Row]:
    """The lines of the table; one that no run has a number for is left out."""
    runs, first = comparison.runs, comparison.reached[0]
    result = [Row(f"{_CLOCK_NAMES[c]}", tuple(clock_text(c, run.end[i]) for run in runs)) for i, c in enumerate(CLOCKS)]
    result.append(_row("tokens read but not trained", runs, _discarded))
    result.append(_row("final validation loss", runs, _final))
    result.append(_row("best validation loss", runs, _best))
    if comparison.target is not None:
        for i, clock in enumerate(CLOCKS):
            cells = [_reached_text(clock, r, i, first, run) for run, r in zip(runs, comparison.reached, strict=True)]
            result.append(Row(f"{_CLOCK_NAMES[clock]} to loss {comparison.target:.3f}", tuple(cells)))
    label = f"steps with loss ratio above {RATIO_LIMIT:g}"
    result.append(_row(label, runs, lambda run: _text(run.spikes, "{:,}".format)))
    result.append(_row("largest loss ratio", runs, lambda run: _text(max_ratio(run), "{:.3f}".format)))
    result.append(_row("spike score", runs, lambda run: _text(run.spike_score, "{:.4f}".format)))
    for name, text in (("variance_sqrt_l1", "variance norm"), ("variance_sqrt_abs_max", "variance max")):
        label = f"correlation of loss ratio and {text}"
        result.append(_row(label, runs, partial(_correlation, name)))
    return [row for row in result if set(row.cells) != {UNKNOWN}]


def score_rows(runs: Sequence[Run]) -> list[Row]:
    """The scores of evaluations, those of all runs."""
    names = dict.fromkeys(name for run in runs for name in run.scores)
    return [Row(name, tuple(_text(run.scores.get(name), "{:,.4g}".format) for run in runs)) for name in names]


_CLOCK_NAMES: Mapping[str, str] = {"step": "steps", "tokens": "tokens", "flops": "FLOPs", "time": "training time"}


def _row(label: str, runs: Sequence[Run], cell: Callable[[Run], str]) -> Row:
    return Row(label, tuple(cell(run) for run in runs))


def _text(value: float | None, render: Callable[[Any], str]) -> str:
    return UNKNOWN if value is None or not math.isfinite(value) else render(value)


def clock_text(clock: str, value: float) -> str:
    """A place on a clock."""
    render = {"step": "{:,.0f}".format, "tokens": count_text, "flops": _flops_text, "time": span_text}
    return _text(value, render[clock]).replace(" ", NO_BREAK)


def _flops_text(value: float) -> str:
    return f"{value:.2e}".replace("e+", "e") if value >= 1e6 else f"{value:,.0f}"


def span_text(seconds: float) -> str:
    """35 s, 12.5 min, 14.9 h or 3.2 days."""
    for least, size, unit in ((172_800.0, 86_400.0, "days"), (7_200.0, 3_600.0, "h"), (120.0, 60.0, "min")):
        if seconds >= least:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"


def pearson_text(found: Pearson | None) -> str:
    """0.23 (p=0.04)."""
    if found is None:
        return UNKNOWN
    if found.p is None:
        return f"{found.r:.2f}"
    return f"{found.r:.2f} ({'p<0.001' if found.p < 0.001 else f'p={found.p:.2f}'})"


def _correlation(name: str, run: Run) -> str:
    return pearson_text(run.correlations[name])


def _discarded(run: Run) -> str:
    return _text(run.discarded, partial(clock_text, "tokens"))


def _final(run: Run) -> str:
    if not run.evaluations:
        return UNKNOWN
    position, loss = run.evaluations[-1]
    return f"{loss:.3f}" + ("" if position[0] == run.end[0] else f" (step {position[0]:,.0f})")


def _best(run: Run) -> str:
    if not run.evaluations:
        return UNKNOWN
    position, loss = min(run.evaluations, key=lambda pair: pair[1])
    return f"{loss:.3f} (step {position[0]:,.0f})"


def _reached_text(clock: str, reached: Reached | None, i: int, first: Reached | None, run: Run) -> str:
    if reached is None:
        return "never reached" if run.evaluations else UNKNOWN
    value = reached.position[i]
    text = clock_text(clock, value)
    if text != UNKNOWN and reached.at_first:
        text = f"≤{NO_BREAK}{text}"
    beside = first.position[i] if first is not None and first is not reached else math.nan
    return f"{text} ({value / beside:.2f}×)" if beside > 0 and math.isfinite(value) else text
