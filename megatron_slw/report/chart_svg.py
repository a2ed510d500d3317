"""One chart as inline SVG that fits any width without a script: lines stretch, texts, marks and points do not.

The outer <svg> has no viewBox: its x are percentages, its y pixels. The lines lie in an inner one whose 1000 units
are stretched over the width. Whatever has an x carries its place on the other clocks in `data-x` (see page_assets).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from megatron_slw.report.chart_axes import Axes, Frame, Panel, frame_of, smoothed
from megatron_slw.report.scales import Scale, clock_unit
from megatron_slw.report.series import CLOCKS, Run
from megatron_slw.report.smoothing import Floats

LETTERS = "ABCDE"
MAX_POINTS = 40
"""Evaluations of a run that are drawn."""
_LABEL_GAP = 14
_NAMED_MARKS = 3
_NAME_WIDTH = 18
_MARGIN_FROM = 0.85
"""A line that ends this far to the right is named in the margin, where no other line is."""


def draw(panel: Panel, runs: Sequence[Run], axes: Axes) -> str:
    """The chart of the runs that have the panel's measure; the others are left out."""
    known = [(number, run) for number, run in enumerate(runs) if run.has(panel.measure)]
    frame = frame_of(panel, runs, axes)
    content = [_grid(frame), _goal(frame)]
    content.append(
        f'<svg viewBox="0 0 1000 {panel.height}" preserveAspectRatio="none" width="100%" height="{panel.height}" '
        f'overflow="hidden">{"".join(_lines(frame, number, run) for number, run in known)}</svg>'
    )
    content += [_marks(frame, number, run) + _points(frame, number, run) for number, run in known]
    content += _labels(frame, known) if panel.kind != "stairs" else []
    content.append(f'<line class="cursor" y1="0" y2="{panel.height}" visibility="hidden"/>')
    names = ", ".join(f"{LETTERS[number]} {run.name}" for number, run in known)
    return (
        f'<svg class="plot" height="{panel.height}" role="img" data-measure="{panel.measure}" '
        f'aria-label="{escape(f"{panel.title}: {names}")}">{"".join(content)}</svg>'
    )


def _grid(frame: Frame) -> str:
    rows = []
    for value, text in frame.scale.ticks(max(2, frame.height // 36)):
        y = frame.y(value)
        rows.append(f'<line class="grid" x1="0" x2="100%" y1="{y}" y2="{y}"/>')
        rows.append(f'<text class="tick" x="-7" y="{y}" dy="4" text-anchor="end">{text}</text>')
    rows += [_clock_grid(frame, clock, axis) for clock, axis in frame.axes.scales.items()]
    rows.append(f'<line class="base" x1="0" x2="100%" y1="{frame.height}" y2="{frame.height}"/>')
    return "".join(rows)


def _clock_grid(frame: Frame, clock: str, axis: Scale) -> str:
    """The vertical lines and numbers of one clock; the style sheet shows those of one."""
    unit = clock_unit(clock, axis.high)
    rows = [f'<g class="axis {clock}">']
    for number, (value, text) in enumerate(Scale(0.0, axis.high / unit.size).ticks(6)):
        x = f"{100 * axis.place(value * unit.size):.2f}%"
        rows.append(f'<line class="grid" x1="{x}" x2="{x}" y1="0" y2="{frame.height}"/>')
        if frame.panel.ticks:
            odd = " odd" if number % 2 else ""  # a phone leaves these numbers out
            rows.append(f'<text class="tick x{odd}" x="{x}" y="{frame.height + 15}">{text}</text>')
    if frame.panel.ticks:
        rows.append(f'<text class="unit" x="50%" y="{frame.height + 31}">{unit.text}</text>')
    return "".join([*rows, "</g>"])


def _goal(frame: Frame) -> str:
    if frame.panel.line is None:
        return ""
    y = frame.y(frame.panel.line[0])
    text = f'<text class="goal" x="0" dx="6" y="{y}" dy="-5">{escape(frame.panel.line[1])}</text>'
    return f'<line class="goal" x1="0" x2="100%" y1="{y}" y2="{y}"/>{text}'


def _marks(frame: Frame, number: int, run: Run) -> str:
    found = []
    for order, mark in enumerate(run.marks):
        x, moves = frame.placed(run, mark.position)
        kind = "resumed" if mark.text == "resumed" else "grown"
        text = escape(f"{LETTERS[number]} {mark.text}")
        found.append(
            f'<line class="mark {kind} c{number}" x1="{x}" x2="{x}" y1="0" y2="{frame.height}" {moves}>'
            f"<title>{text} after step {mark.position[0]:,.0f}</title></line>"
        )
        if frame.panel.names and (order < _NAMED_MARKS or kind == "grown"):
            y = 11 + 13 * number
            named = f'{LETTERS[number]}<tspan class="name"> {escape(mark.text)}</tspan>'
            found.append(f'<text class="happened c{number}" x="{x}" dx="4" y="{y}" {moves}>{named}</text>')
    return "".join(found)


def _lines(frame: Frame, number: int, run: Run) -> str:
    measure, kind = frame.panel.measure, frame.panel.kind
    low, high = run.low(measure), run.high(measure)
    if kind == "stairs":
        return _path(frame, "line", number, run, [high], stairs=True)
    every = [low] if (low[low == low] == high[high == high]).all() else [low, high]
    if kind == "steps":
        return _path(frame, "line single", number, run, every)
    mean = [smoothed(run, measure)]
    return _path(frame, "faint", number, run, every) + _path(frame, "line", number, run, mean)


def _path(frame: Frame, style: str, number: int, run: Run, columns: list[Floats], stairs: bool = False) -> str:
    """A line through one or two values of every interval, broken where there is none.

    `data-from` has the interval at which each piece begins, `data-each` the points of an interval (0 for stairs).
    """
    places = frame.axes.intervals(run, frame.axes.shown)
    x = [f"{place:g}" for place in places or [0.0] * len(run.reduced)]
    pieces: list[str] = []
    begins: list[int] = []
    last = -2
    for i, values in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
        if any(value != value for value in values):
            continue
        if i != last + 1:
            begins.append(i)
            pieces.append("M")
        # Up and down in turns: the line then has no edge from the top of an interval to the bottom of the next.
        heights = [frame.y(value) for value in (values if i % 2 else values[::-1])]
        if stairs:
            pieces.append(f"{x[max(begins[-1], i - 1)]} {heights[0]} ")
        pieces += [f"{x[i]} {y} " for y in heights]
        last = i
    hidden = "" if places else ' style="display:none"'
    return (
        f'<path class="{style} c{number}" data-run="{number}" data-each="{0 if stairs else len(columns)}" '
        f'data-from="{" ".join(map(str, begins))}" d="{"".join(pieces)}"{hidden}/>'
    )


def _points(frame: Frame, number: int, run: Run) -> str:
    """The evaluations; on other charts a few signs on the line, so that it is known without its colour."""
    panel = frame.panel
    if panel.kind == "stairs":
        return ""
    points: Iterable[tuple[Sequence[float], float]]
    if panel.names and run.evaluations:
        count = len(run.evaluations)
        shown = min(count, MAX_POINTS)
        points = [run.evaluations[i * (count - 1) // max(shown - 1, 1)] for i in range(shown)]
    else:
        values = _drawn(panel, run).tolist()
        chosen = [int((share + 0.04 * number) * (len(values) - 1)) for share in (0.2, 0.5, 0.8)]
        points = [(run.reduced.high[i, : len(CLOCKS)].tolist(), values[i]) for i in chosen if values[i] == values[i]]
    found = []
    for position, value in points:
        if 0 <= frame.scale.place(value) <= 1:
            x, moves = frame.placed(run, position)
            found.append(f'<use class="c{number}" href="#sign{number}" x="{x}" y="{frame.y(value)}" {moves}/>')
    return "".join(found)


def _drawn(panel: Panel, run: Run) -> Floats:
    return smoothed(run, panel.measure) if panel.kind == "smooth" else run.mean(panel.measure)


def _labels(frame: Frame, known: Sequence[tuple[int, Run]]) -> list[str]:
    """Every line's name at its end, moved apart where they would overlap."""
    ends = []
    for number, run in known:
        values = _drawn(frame.panel, run)
        ends.append((float(frame.y(float(values[values == values][-1]))), number, run))
    ends.sort(key=lambda end: end[0])
    found = []
    for y, (_, number, run) in zip(spread([e[0] for e in ends], _LABEL_GAP, 6.0, frame.height), ends, strict=True):
        x, moves = frame.placed(run, run.end, margin_from=_MARGIN_FROM)
        short = run.name if len(run.name) <= _NAME_WIDTH else run.name[: _NAME_WIDTH - 1] + "…"
        name = f'<tspan class="name"> {escape(short)}</tspan>' if frame.panel.names else ""
        text = f"{LETTERS[number]}{name}"
        found.append(f'<text class="label c{number}" x="{x}" dx="9" y="{y:.1f}" dy="4" {moves}>{text}</text>')
    return found


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """`places`, ascending, moved to lie `gap` apart and, as far as they fit, within [low, high]."""
    result: list[float] = []
    for place in places:
        result.append(max(place, result[-1] + gap if result else low))
    limit = high
    for i in range(len(result) - 1, -1, -1):
        result[i] = min(result[i], limit)
        limit = result[i] - gap
    return result
