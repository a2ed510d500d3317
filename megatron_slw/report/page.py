"""The comparison as one HTML file: no network, no other file, whole without its script."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from megatron_slw.config.errors import ConfigError, listing
from megatron_slw.report.chart_axes import Axes, Panel, cut_off, frame_of, make_axes, smoothed
from megatron_slw.report.chart_svg import LETTERS, draw
from megatron_slw.report.finding import finding
from megatron_slw.report.page_assets import SCRIPT, SIGNS, style
from megatron_slw.report.series import MAX_MARKS, Run
from megatron_slw.report.smoothing import Floats
from megatron_slw.report.table import Comparison, Row, rows, score_rows
from megatron_slw.slw.stability import RATIO_LIMIT

_NOTHING_ELSE = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
_CLOCK_NAMES = {"step": "steps", "tokens": "tokens", "flops": "FLOPs", "time": "time"}


def render(comparison: Comparison) -> str:
    """The page as text.

    Args:
        comparison: of at most inputs.MAX_RUNS runs.
    """
    runs = comparison.runs
    axes = make_axes(runs)
    title = escape(finding(comparison))
    signs = "".join(f'<g id="sign{number}">{sign}</g>' for number, sign in enumerate(SIGNS[: len(runs)]))
    keys = "".join(_key(number, run) for number, run in enumerate(runs))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_NOTHING_ELSE}">
<title>{title}</title>
<style>{style()}</style>
</head>
<body>
<svg width="0" height="0" style="position:absolute" aria-hidden="true"><defs>{signs}</defs></svg>
<h1>{title}</h1>
{_table(runs, rows(comparison))}
{_scores(runs)}
<h2>Curves</h2>
<div class="controls">{_switch(axes)}<div class="legend">{keys}</div></div>
<div id="charts" data-clock="{axes.shown}">{_charts(comparison, axes)}</div>
<h2>Notes</h2>
<ul class="notes">{"".join(f"<li>{escape(note)}</li>" for note in notes(comparison))}</ul>
<script type="application/json" id="data">{_data(runs, axes)}</script>
<script>{SCRIPT}</script>
</body>
</html>
"""


def write(comparison: Comparison, path: str | Path) -> int:
    """Write the page to `path`, whole or not at all; return its bytes.

    Raises:
        ConfigError: it cannot be written.
    """
    path = Path(path)
    content = render(comparison).encode("utf-8")
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        try:
            partial.write_bytes(content)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}; change --output") from None
    return len(content)


def panels(comparison: Comparison) -> list[Panel]:
    """The charts, of everything that any run recorded."""
    target = comparison.target
    goal = None if target is None else (target, f"target {target:.3f}")
    limit = (RATIO_LIMIT, f"{RATIO_LIMIT:g}")
    every = [
        Panel("loss", "Loss", "nats per token", 280, "smooth", wide=True, names=True, line=goal, ticks=False),
        Panel("seq_len", "Sequence length", "tokens", 64, "stairs", wide=True),
        Panel("loss_ratio", "Loss ratio", "loss / lowest loss before", 170, "steps", line=limit),
        Panel("grad_norm", "Gradient norm", "before clipping", 170, "smooth"),
        Panel("variance_sqrt_l1", "Variance norm", "L1 norm of the root of Adam’s second moment", 170, "steps"),
        Panel("variance_sqrt_abs_max", "Variance max", "largest element of that root", 170, "steps"),
    ]
    return [panel for panel in every if any(run.has(panel.measure) for run in comparison.runs)]


def notes(comparison: Comparison) -> list[str]:
    """What a reader must know to read the figures right, and what is missing."""
    runs = comparison.runs
    found = ["Time is the sum of the steps’ times: evaluation, checkpoints and restarts are not in it."]
    if comparison.target is not None:
        whose = "" if comparison.target_given else f", the best validation loss of {runs[0].name}"
        found.append(
            f"The cost of reaching loss {comparison.target:.3f}{whose}: between the evaluation above it and the next, "
            "the loss is taken to fall on a straight line."
        )
    elif any(run.evaluations for run in runs):
        found.append("--target-loss sets the loss to reach where the first run was never evaluated.")
    if any(run.correlations["variance_sqrt_l1"] for run in runs):
        found.append("Correlations are Pearson’s over all steps; p takes them as independent, so it is too small.")
    if any(len(run.reduced) < run.reduced.count[:, 0].sum() for run in runs):
        found.append("Curves of long runs show the least and the greatest value of each short interval of steps.")
    missing = [[text for name, text in _RECORDS.items() if not _has(run, name)] for run in runs]
    everywhere = [text for text in missing[0] if all(text in other for other in missing)]
    if everywhere:
        found.append(f"No run has a record of {listing(everywhere, 'and')}: their charts and lines are left out.")
    for run, lacks in zip(runs, missing, strict=True):
        own = [text for text in lacks if text not in everywhere]
        if own:
            found.append(f"{run.name} has no record of {listing(own, 'and')}.")
        if run.first_step > 1:
            found.append(f"{run.name} begins at step {run.first_step:,}: its time counts from there.")
        if run.resumes:
            times = "once" if run.resumes == 1 else f"{run.resumes} times"
            drawn = "" if run.resumes <= MAX_MARKS else f", the first {MAX_MARKS} of which are drawn"
            found.append(f"{run.name} was resumed {times} (dotted line){drawn}.")
    return found


_RECORDS = {
    "evaluations": "validation losses",
    "flops": "FLOPs",
    "time": "step times",
    "loss_ratio": "loss ratios",
    "grad_norm": "gradient norms",
    "variance_sqrt_l1": "variance norms",
    "variance_sqrt_abs_max": "variance maxima",
}


def _has(run: Run, name: str) -> bool:
    if name == "evaluations":
        return bool(run.evaluations)
    return run.clock(name) is not None if name in _CLOCK_NAMES else run.has(name)


def _table(runs: Sequence[Run], lines: Sequence[Row], style: str = "") -> str:
    heads = "".join(f'<th scope="col" class="c{number}">{_key(number, run)}</th>' for number, run in enumerate(runs))
    body = ""
    for line in lines:
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in line.cells)
        body += f'<tr><th scope="row">{escape(line.label)}</th>{cells}</tr>'
    return f'<table class="{style}"><thead><tr><td></td>{heads}</tr></thead><tbody>{body}</tbody></table>'


def _scores(runs: Sequence[Run]) -> str:
    lines = score_rows(runs)
    return f"<h2>Scores</h2>{_table(runs, lines, 'again')}" if lines else ""


def _key(number: int, run: Run) -> str:
    """Letter, line, sign and name of a run."""
    sample = (
        f'<svg class="key c{number}" width="30" height="12" aria-hidden="true">'
        f'<line class="line" x1="0" x2="30" y1="6" y2="6"/><use href="#sign{number}" x="15" y="6"/></svg>'
    )
    return f"<span>{sample}{LETTERS[number]}<span class='full'> {escape(run.name)}</span></span>"


def _switch(axes: Axes) -> str:
    """Shown by the script, without which it would do nothing."""
    buttons = "".join(
        f'<button type="button" value="{clock}" aria-pressed="{str(clock == axes.shown).lower()}">'
        f"{_CLOCK_NAMES[clock]}</button>"
        for clock in axes.scales
    )
    return f'<div class="switch" role="group" aria-label="horizontal axis" hidden>{buttons}</div>'


def _charts(comparison: Comparison, axes: Axes) -> str:
    chosen = panels(comparison)
    main = "".join(_figure(panel, comparison.runs, axes) for panel in chosen if panel.wide)
    others = "".join(_figure(panel, comparison.runs, axes) for panel in chosen if not panel.wide)
    return f'{main}<div class="grids">{others}</div>'


def _figure(panel: Panel, runs: Sequence[Run], axes: Axes) -> str:
    detail = panel.detail
    if panel.kind == "smooth":
        detail += "; faint: single steps, line: moving average"
    if panel.names:
        if any(run.evaluations for run in runs):
            detail += ", signs: validation"
        above = cut_off(frame_of(panel, runs, axes), runs)
        if above is not None:
            detail += f"; the beginning, up to {above:.3g}, is cut off"
    style = ("wide " if panel.wide else "") + ("" if panel.ticks else "bare")
    return (
        f'<figure class="{style}"><figcaption>{panel.title} <small>{escape(detail)}</small>'
        f'<span class="readout"></span></figcaption><div class="frame">{draw(panel, runs, axes)}</div></figure>'
    )


def _data(runs: Sequence[Run], axes: Axes) -> str:
    """What the script needs, as JSON that cannot end its element."""
    content: dict[str, Any] = {
        "clocks": list(axes.scales),
        "ends": {clock: scale.high for clock, scale in axes.scales.items()},
        "runs": [
            {
                "x": {clock: axes.intervals(run, clock) for clock in axes.scales},
                "y": {name: _columns(run, name) for name in _SMOOTHED if run.has(name)},
            }
            for run in runs
        ],
    }
    return json.dumps(content, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


_SMOOTHED = {
    "loss": True,
    "seq_len": False,
    "grad_norm": True,
    "loss_ratio": False,
    "variance_sqrt_l1": False,
    "variance_sqrt_abs_max": False,
}
"""Of each measure, whether it is drawn as a moving average."""


def _columns(run: Run, measure: str) -> list[list[float | None]]:
    """[lowest, highest, moving average] of every interval; the second, or the last two, left out where not needed."""
    low, high = run.low(measure), run.high(measure)
    columns = [low]
    if _SMOOTHED[measure]:
        columns += [high, smoothed(run, measure)]
    elif not (low[low == low] == high[high == high]).all():
        columns.append(high)
    return [_short(column) for column in columns]


def _short(values: Floats) -> list[float | None]:
    return [float(f"{value:.5g}") if math.isfinite(value) else None for value in values.tolist()]

