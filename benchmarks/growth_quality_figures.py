"""The pictures of growth_quality.py's results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.growth_quality_arms import ALONE, BASELINE, GROWN
from benchmarks.growth_quality_evaluation import averaged

Run = Mapping[str, Any]
GOAL = 0.4
STYLES: Sequence[Mapping[str, Any]] = (
    {"color": "#1a1a1a", "linestyle": "-"},
    {"color": "#1a1a1a", "linestyle": "--"},
    {"color": "#7a7a7a", "linestyle": "-"},
    {"color": "#7a7a7a", "linestyle": "--"},
    {"color": "#1a1a1a", "linestyle": ":"},
)
"""By line and lightness, so that it prints in black and white: dashed has the length warmup."""
MARKERS = {"exact": ("o", "#1a1a1a"), "published": ("^", "#7a7a7a"), "fresh": ("x", "#4a4a4a")}
SLW = "scratch slw"


def draw(result: Mapping[str, Any], folder: Path) -> None:
    """Write growth_quality_curves.png and growth_quality_savings.png."""
    folder.mkdir(parents=True, exist_ok=True)
    curves_figure(result).savefig(folder / "growth_quality_curves.png", dpi=100)
    savings_figure(result).savefig(folder / "growth_quality_savings.png", dpi=100)


def curves_figure(result: Mapping[str, Any]) -> Figure:
    """Loss against compute from scratch and grown, with and without the warmup; the lengths below."""
    figure = _figure(10.0, 5.6)
    losses, lengths = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    runs = result["runs"]
    route = best_route(result)
    shown = {
        "from scratch": BASELINE.name, "from scratch, length warmup": SLW,
        f"{route} grown": f"{route} exact", f"{route} grown, length warmup": f"{route} slw exact",
        "half depth, never grown": "half depth",
    }  # fmt: skip
    for (label, name), style in zip(shown.items(), STYLES, strict=True):
        if name in runs:
            _curve(losses, lengths, runs[name], label, style)
    target = sum(run["target"] for run in runs[BASELINE.name]) / len(runs[BASELINE.name])
    losses.axhline(target, color="#1a1a1a", linewidth=0.9, linestyle=(0, (1, 3)))
    losses.set(ylabel="validation loss at full length\n(nats per token, mean of the seeds)")
    losses.plot([], [], "o", color="#4a4a4a", label="growth")
    losses.legend(frameon=False, fontsize=9)
    lengths.set(xlabel="FLOPs of training, all stages (10¹²)", ylabel="length\n(tokens)", ylim=(0, None))
    figure.suptitle(_curves_finding(result, route), fontsize=12, x=0.01, horizontalalignment="left")
    return figure


def best_route(result: Mapping[str, Any]) -> str:
    """The route that saves most with the warmup and exact moments."""
    arms = result["arms"]
    known = [route for route in GROWN if arms.get(f"{route} slw exact", {}).get("saved_flops")]
    return max(known, key=lambda route: float(arms[f"{route} slw exact"]["saved_flops"]["mean"]), default=GROWN[0])


def savings_figure(result: Mapping[str, Any]) -> Figure:
    """Compute saved by each way to the baseline's loss, a mark a seed; without the warmup, and with it."""
    figure = _figure(10.0, 4.6)
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for axis, slw in zip(panels, (False, True), strict=True):
        _savings(axis, result["runs"], slw)
        axis.set_title("with length warmup" if slw else "full length throughout", fontsize=10)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=9, loc="outside lower right", ncols=4)
    figure.suptitle(_savings_finding(result), fontsize=12, x=0.01, horizontalalignment="left")
    return figure


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)  # no pyplot: it keeps every figure in a global list
    return figure


def _curve(losses: Axes, lengths: Axes, runs: Sequence[Run], label: str, style: Mapping[str, Any]) -> None:
    """The mean over the seeds, as far as all of them go; their evaluations lie at the same FLOPs."""
    points = list(zip(*(run["curve"] for run in runs), strict=False))
    flops = [point[0][0] / 1e12 for point in points]
    means = averaged([sum(seed[1] for seed in point) / len(point) for point in points])
    losses.plot(flops, means, label=label, linewidth=1.4, **style)
    for i in range(1, len(points)):
        if points[i][0][2] != points[i - 1][0][2]:
            losses.plot(flops[i - 1], means[i - 1], "o", color=style["color"], markersize=7)
    losses.grid(color="#e6e6e6", linewidth=0.6)
    lengths.step(flops, [point[0][3] for point in points], where="pre", linewidth=1.0, **style)
    for axis in (losses, lengths):
        axis.spines[["top", "right"]].set_visible(False)


def _savings(axis: Axes, runs: Mapping[str, Sequence[Run]], slw: bool) -> None:
    rows = ("scratch", *GROWN, *ALONE)
    for row, route in enumerate(rows):
        for shift, (moments, (marker, color)) in enumerate(MARKERS.items()):
            words = [route, "slw" if slw else "", moments if route in GROWN else ""]
            found = runs.get(" ".join(filter(None, words)), [])
            values = [100 * run["saved_flops"] for run in found if run["saved_flops"] is not None]
            if route not in GROWN and (moments != "exact" or (route == "scratch" and not slw)):
                continue
            label = f"{moments} moments" if route == GROWN[0] else None
            axis.plot(values, [row + 0.22 * (shift - 1)] * len(values), marker, color=color, markersize=7,
                      linestyle="none", label=label)  # fmt: skip
    axis.axvline(0, color="#1a1a1a", linewidth=0.9)
    axis.axvline(100 * GOAL, color="#1a1a1a", linewidth=0.9, linestyle=(0, (1, 3)))
    axis.set_yticks(range(len(rows)), [f"{row}, never grown" if row in ALONE else row for row in rows])
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_xlabel("compute saved (% of the baseline's, each seed)")
    axis.grid(color="#e6e6e6", linewidth=0.6, axis="x")
    axis.spines[["top", "right"]].set_visible(False)


def _percent(result: Mapping[str, Any], name: str) -> str | None:
    found = result["arms"].get(name, {}).get("saved_flops")
    return None if not found else f"{100 * found['mean']:.0f} %"


def _curves_finding(result: Mapping[str, Any], route: str) -> str:
    parts = {"length warmup": SLW, f"{route}": f"{route} exact", "both": f"{route} slw exact"}
    found = [f"{label} {_percent(result, name)}" for label, name in parts.items() if _percent(result, name)]
    return f"Compute saved on the way to the baseline's loss (dotted): {', '.join(found)}"


def _savings_finding(result: Mapping[str, Any]) -> str:
    goal, made = 100 * GOAL, [
        name for name, arm in result["arms"].items() if arm["saved_flops"] and arm["saved_flops"]["mean"] >= GOAL
    ]  # fmt: skip
    grown = [name for name in result["arms"] if name.split()[0] in GROWN]
    count = sum(name in grown for name in made)
    return f"{count} of {len(grown)} ways to grow save {goal:.0f} % (dotted) or more on the average of their seeds"
