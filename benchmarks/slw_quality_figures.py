"""The pictures of slw_quality.py's results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

STYLES: Sequence[dict[str, Any]] = (
    {"color": "#1a1a1a", "linestyle": "-", "marker": "o"},
    {"color": "#1a1a1a", "linestyle": "--", "marker": "^"},
    {"color": "#8a8a8a", "linestyle": "-", "marker": "s"},
    {"color": "#8a8a8a", "linestyle": ":", "marker": "D"},
    {"color": "#5a5a5a", "linestyle": "-.", "marker": "v"},
    {"color": "#b4b4b4", "linestyle": "-", "marker": "x"},
)
"""By line, marker and lightness, so that it prints in black and white."""
SHOWN = {
    "baseline": "full length throughout", "slw": "sequence-length warmup", "two_stage": "two stages",
    "batch_warmup": "batch-size warmup", "mixed": "mixed lengths", "low_rate": "full length, low rate",
}  # fmt: skip


def draw(result: Mapping[str, Any], folder: Path) -> None:
    """Write slw_quality_stability.png and slw_quality_epoch.png, of the studies that are there."""
    folder.mkdir(parents=True, exist_ok=True)
    for study, figure in (("stability", stability_figure), ("epoch", epoch_figure)):
        if study in result:
            figure(result[study]).savefig(folder / f"slw_quality_{study}.png", dpi=100)


def stability_figure(study: Mapping[str, Any]) -> Figure:
    """Validation loss against tokens and against time, mean of the seeds, and the range of the seeds' ends."""
    figure = _figure(10.5, 4.6)
    by_tokens, by_time = figure.subplots(1, 2, sharey=True)
    for (arm, runs), style in zip(study["runs"].items(), STYLES, strict=False):
        _curve(by_tokens, runs, 0, 1e6, SHOWN[arm], style)
        _curve(by_time, runs, 2, 60.0, SHOWN[arm], style)
    by_tokens.set_xlabel("tokens trained (millions)")
    by_time.set_xlabel("minutes of one core")
    by_tokens.set_ylabel("validation loss at full length\n(nats per token, mean of seeds)")
    by_tokens.legend(frameon=False, fontsize=9)
    figure.suptitle(_stability_finding(study["arms"]), fontsize=12, x=0.01, horizontalalignment="left")
    return figure


def epoch_figure(study: Mapping[str, Any]) -> Figure:
    """Final validation loss of each seed against the FLOPs spent, one marker an arm."""
    figure = _figure(8.0, 4.6)
    axis = figure.subplots()
    for (arm, runs), style in zip(study["runs"].items(), STYLES, strict=False):
        flops = [run["flops"] / 1e12 for run in runs]
        losses = [run["final_val_loss"] for run in runs]
        label = arm.replace("_", " ")
        axis.plot(flops, losses, color=style["color"], marker=style["marker"], linestyle="none", ms=7, label=label)
    axis.set_xlabel("model FLOPs of the epoch (10¹²)")
    axis.set_ylabel("final validation loss\n(nats per token, each seed)")
    axis.grid(color="#e6e6e6", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=9)
    means = {arm: figures["final_val_loss"]["mean"] for arm, figures in study["arms"].items()}
    best, worst = min(means, key=lambda arm: means[arm]), max(means, key=lambda arm: means[arm])
    title = f"One epoch: {_plain(best)} ends lowest ({means[best]:.3f}), {_plain(worst)} highest ({means[worst]:.3f})"
    figure.suptitle(title, fontsize=12, x=0.01, horizontalalignment="left")
    return figure


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)  # no pyplot: it keeps every figure in a global list
    return figure


def _curve(axis: Axes, runs: Sequence[Mapping[str, Any]], clock: int, unit: float, label: str, style: Any) -> None:
    """The mean over the seeds; their evaluations lie at the same steps, so at the same places."""
    points = list(zip(*(run["curve"] for run in runs), strict=False))
    if any(point[0][clock] is None for point in points):
        return
    places = [point[0][clock] / unit for point in points]
    losses = [sum(seed[3] for seed in point) / len(point) for point in points]
    every = max(1, len(points) // 8)
    axis.plot(places, losses, label=label, linewidth=1.4, markersize=5, markevery=every, **style)
    axis.grid(color="#e6e6e6", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)


def _stability_finding(figures: Mapping[str, Any]) -> str:
    ends = {arm: found["final_val_loss"]["mean"] for arm, found in figures.items()}
    ordered = sorted(ends, key=lambda arm: ends[arm])
    return "Final validation loss: " + ", ".join(f"{_plain(arm)} {ends[arm]:.2f}" for arm in ordered)


def _plain(arm: str) -> str:
    return arm.replace("_", " ")
