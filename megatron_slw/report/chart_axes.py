"""What the charts of a page share: the horizontal axes, one for each clock, and where things lie on a chart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_slw.report.scales import Scale, clock_scale, value_scale
from megatron_slw.report.series import CLOCKS, Position, Run
from megatron_slw.report.smoothing import Floats, smooth

BEGINNING = 0.08
"""Of the axis drawn at first: a run's fall from its initial loss is no reason to press the rest together."""


@dataclass(frozen=True)
class Panel:
    """What a chart shows."""

    measure: str
    title: str
    detail: str
    height: int
    kind: str
    """smooth: faint steps under a moving average; steps: every step; stairs: constant in between."""
    wide: bool = False
    """Over the whole page, with a margin for the runs' names."""
    names: bool = False
    """Has the evaluations, and names the runs and marks in full."""
    line: tuple[float, str] | None = None
    """A horizontal line: where, and its text."""
    ticks: bool = True
    """Writes the numbers of the horizontal axis; without, they stand under the chart beneath."""


@dataclass(frozen=True)
class Axes:
    """The horizontal axes: a scale for each clock that any run has, and the clock drawn at first."""

    scales: dict[str, Scale]
    shown: str

    def places(self, run: Run, position: Sequence[float]) -> dict[str, float]:
        """Where a position lies, 0 to 1, on each axis; nan on one that the run does not have."""
        return {
            clock: scale.place(position[CLOCKS.index(clock)]) if run.clock(clock) is not None else math.nan
            for clock, scale in self.scales.items()
        }

    def intervals(self, run: Run, clock: str) -> list[float] | None:
        """Where a run's intervals end, 0 to 1000; None where the run does not have the clock."""
        values = run.clock(clock) if clock in self.scales else None
        return None if values is None else [round(1000 * self.scales[clock].place(x), 1) for x in values.tolist()]


def make_axes(runs: Sequence[Run]) -> Axes:
    """The axes on which every run fits."""
    scales = {}
    for clock in CLOCKS:
        ends = [float(x[-1]) for run in runs if (x := run.clock(clock)) is not None]
        if ends:
            scales[clock] = clock_scale(max(ends))
    return Axes(scales, "tokens" if "tokens" in scales else "step")


@dataclass(frozen=True)
class Frame:
    """A chart's rectangle: both axes, and what is drawn in it."""

    panel: Panel
    axes: Axes
    scale: Scale

    @property
    def height(self) -> int:
        """In pixels."""
        return self.panel.height

    def y(self, value: float) -> str:
        """Pixels from the top, kept near the chart: what is clipped need not be exact."""
        pixels = self.height * (1 - self.scale.place(value))
        return f"{min(max(pixels, -9.0), self.height + 9.0):.1f}".removesuffix(".0")

    def placed(self, run: Run, position: Sequence[float], margin_from: float = 1.0) -> tuple[str, str]:
        """The x on the axis drawn at first, and the attributes that move it to the others.

        What lies at `margin_from` or further to the right is put at the right edge.
        """
        places = self.axes.places(run, position)
        places = {clock: 1.0 if place >= margin_from else place for clock, place in places.items()}
        percents = {clock: f"{100 * p:.2f}" if math.isfinite(p) else "-" for clock, p in places.items()}
        first = percents[self.axes.shown]
        hidden = ' style="display:none"' if first == "-" else ""
        return f"{0 if first == '-' else first}%", f'data-x="{" ".join(percents.values())}"{hidden}'


def smoothed(run: Run, measure: str) -> Floats:
    """The moving average of a measure, at the end of each interval."""
    return smooth(run.mean(measure), run.counts(measure))


def frame_of(panel: Panel, runs: Sequence[Run], axes: Axes) -> Frame:
    """The frame that holds the runs. The loss at a run's very beginning may lie above it."""
    values: list[float] = [] if panel.line is None else [panel.line[0]]
    for run in runs:
        late = _late(run, axes) if panel.names else [True] * len(run.reduced)
        values += [v for v, is_late in zip(run.high(panel.measure).tolist(), late, strict=True) if is_late]
        values.append(min((v for v in run.low(panel.measure).tolist() if v == v), default=math.nan))
        if panel.names:
            values += [loss for position, loss in run.evaluations if _is_late(run, position, axes)]
    return Frame(panel, axes, value_scale(values))


def cut_off(frame: Frame, runs: Sequence[Run]) -> float | None:
    """The greatest value that lies above the chart; None where all of them are on it."""
    values = [v for run in runs for v in run.high(frame.panel.measure).tolist() if v > frame.scale.high]
    return max(values, default=None)


def _late(run: Run, axes: Axes) -> list[bool]:
    places = axes.intervals(run, axes.shown) or [1000.0] * len(run.reduced)
    late = [place >= 1000 * BEGINNING for place in places]
    return late if any(late) else [True] * len(late)


def _is_late(run: Run, position: Position, axes: Axes) -> bool:
    return not axes.places(run, position)[axes.shown] < BEGINNING
