"""The pictures of slw_quality.py's results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from megatron_slw.slw.stability import RATIO_LIMIT

Run = Mapping[str, Any]
STYLES: Sequence[Mapping[str, Any]] = (
    {"color": "#1a1a1a", "linestyle": "-", "marker": "o"},
    {"color": "#1a1a1a", "linestyle": "--", "marker": "^"},
    {"color": "#8a8a8a", "linestyle": "-", "marker": "s"},
    {"color": "#8a8a8a", "linestyle": ":", "marker": "D"},
    {"color": "#5a5a5a", "linestyle": "-.", "marker": "v"},
    {"color": "#b4b4b4", "linestyle": "-", "marker": "X"},
)
"""By line, marker and lightness, so that it prints in black and white."""
SHOWN = {
    "baseline": "full length", "slw": "length warmup", "two_stage": "two stages", "batch_warmup": "batch warmup",
    "mixed": "mixed lengths",
}  # fmt: skip
RATES = (
    ("full length", ("low_rate", "baseline", "highest_rate")),
    ("length warmup", ("slw_low_rate", "slw", "slw_highest_rate")),
)
"""Arms by rising learning rate."""


def draw(result: Mapping[str, Any], folder: Path) -> None:
    """Write slw_quality_stability.png and slw_quality_epoch.png, of the studies that are there."""
    folder.mkdir(parents=True, exist_ok=True)
    for study, figure in (("stability", stability_figure), ("epoch", epoch_figure)):
        if study in result:
            figure(result[study]).savefig(folder / f"slw_quality_{study}.png", dpi=100)


def stability_figure(study: Mapping[str, Any]) -> Figure:
    """Loss against tokens at the high rate; the largest loss ratios there; the final losses at all rates."""
    figure = _figure(12.0, 4.6)
    curves, ratios, rates = figure.subplots(1, 3, width_ratios=(1.5, 1.0, 1.0))
    runs = study["runs"]
    at_high_rate = [arm for arm in SHOWN if arm in runs]
    for arm, style in zip(at_high_rate, STYLES, strict=False):
        _curve(curves, runs[arm], SHOWN[arm], style)
    curves.set(xlabel="tokens trained (millions)", ylabel="validation loss at full length (nats per token)")
    curves.legend(frameon=False, fontsize=9)
    _ratios(ratios, {SHOWN[arm]: runs[arm] for arm in at_high_rate})
    _rates(rates, runs)
    figure.suptitle(_stability_finding(runs, at_high_rate), fontsize=12, x=0.01, horizontalalignment="left")
    return figure


def epoch_figure(study: Mapping[str, Any]) -> Figure:
    """Final validation loss of each seed against the FLOPs spent, one marker an arm."""
    figure = _figure(7.5, 4.4)
    axis = figure.subplots()
    for (arm, runs), style in zip(study["runs"].items(), STYLES, strict=False):
        flops = [run["flops"] / 1e12 for run in runs]
        losses = [run["final_val_loss"] for run in runs]
        axis.plot(
            flops, losses, color=style["color"], marker=style["marker"], linestyle="none", markersize=8,
            label=arm.replace("_", " "), clip_on=False,
        )  # fmt: skip
    axis.set(xlabel="model FLOPs of the epoch (10¹²)", ylabel="final validation loss\n(nats per token, each seed)")
    _plain(axis)
    axis.legend(frameon=False, fontsize=9)
    means = {arm: figures["final_val_loss"]["mean"] for arm, figures in study["arms"].items()}
    low, high = min(means, key=lambda arm: means[arm]), max(means, key=lambda arm: means[arm])
    title = f"One epoch: {low.replace('_', ' ')} ends lowest, at {means[low]:.2f}, {high} highest, at {means[high]:.2f}"
    figure.suptitle(title.replace("_", " "), fontsize=12, x=0.01, horizontalalignment="left")
    return figure


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)  # no pyplot: it keeps every figure in a global list
    return figure


def _curve(axis: Axes, runs: Sequence[Run], label: str, style: Mapping[str, Any]) -> None:
    """The mean over the seeds; their evaluations lie at the same steps, so at the same tokens."""
    points = list(zip(*(run["curve"] for run in runs), strict=False))
    tokens = [point[0][0] / 1e6 for point in points]
    losses = [sum(seed[3] for seed in point) / len(point) for point in points]
    axis.plot(tokens, losses, label=label, linewidth=1.4, markersize=5, markevery=max(1, len(points) // 8), **style)
    _plain(axis)


def _ratios(axis: Axes, runs: Mapping[str, Sequence[Run]]) -> None:
    """A mark a seed."""
    for row, (found, style) in enumerate(zip(runs.values(), STYLES, strict=False)):
        values = [run["loss_ratio_max"] for run in found]
        axis.plot(values, [row] * len(values), style["marker"], color=style["color"], markersize=8, linestyle="none")
    axis.axvline(RATIO_LIMIT, color="#1a1a1a", linewidth=0.9, linestyle=(0, (1, 3)))
    axis.set_yticks(range(len(runs)), list(runs))
    axis.invert_yaxis()
    axis.set_xlabel("largest loss ratio after the\nlearning-rate warmup (each seed)")
    _plain(axis)


def _rates(axis: Axes, runs: Mapping[str, Sequence[Run]]) -> None:
    for (label, names), style in zip(RATES, STYLES, strict=False):
        points = [(name, run) for name in names for run in runs.get(name, ())]
        if not points:
            continue
        axis.plot(
            [run["rate"] for _, run in points], [run["final_val_loss"] for _, run in points],
            marker=style["marker"], color=style["color"], linestyle="none", markersize=6, alpha=0.7,
        )  # fmt: skip
        arms = [name for name in names if name in runs]
        means = [sum(run["final_val_loss"] for run in runs[name]) / len(runs[name]) for name in arms]
        line = {key: style[key] for key in ("color", "linestyle")}
        axis.plot([runs[name][0]["rate"] for name in arms], means, label=label, linewidth=1.4, **line)
    axis.set_xscale("log")
    axis.set(xlabel="peak learning rate", ylabel="final validation loss")
    axis.legend(frameon=False, fontsize=9)
    _plain(axis)


def _plain(axis: Axes) -> None:
    axis.grid(color="#e6e6e6", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)


def _stability_finding(runs: Mapping[str, Sequence[Run]], arms: Sequence[str]) -> str:
    counts = {arm: sum(run["loss_ratio_max"] > RATIO_LIMIT for run in runs[arm]) for arm in arms}
    parts = [f"{SHOWN[arm]} {count} of {len(runs[arm])}" for arm, count in counts.items() if count]
    rate = runs[arms[0]][0]["rate"]
    found = ", ".join(parts) or "none"
    return f"Seeds whose loss jumps by more than a fifth at the rate {rate:g} (left, middle): {found}"
