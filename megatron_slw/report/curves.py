"""The picture of one run, grown on the way or not: loss, sequence length and learning rate, by steps and by tokens.

Two columns, because a length warmup trains few tokens in many steps: what looks slow against steps is cheap
against tokens. Told apart by line and marker, not by colour, so that it prints in black and white.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from megatron_slw.config.errors import ConfigError
from megatron_slw.report.smoothing import Floats, smooth
from megatron_slw.train.metrics import FILE_NAME, Record, read_metrics
from megatron_slw.train.units import count_text

MAX_POINTS = 2000  # more than a picture has columns of pixels
FEW_STEPS = 50
"""Up to here single steps are dots: a line through one of them is not seen."""
INK, GREY = "#1a1a1a", "#b4b4b4"
RESUMED, GROWN = (0, (1, 3)), "solid"
"""Lines that mark a resume and a growth."""


def draw_run(run_dirs: Sequence[str | Path], out_png: str | Path) -> None:
    """Draw a run into the file `out_png`, making its directory.

    Args:
        run_dirs: where its metrics.jsonl lie, one for each stage between growths, whose clock goes on.
        out_png: the picture.

    Raises:
        ConfigError: there is no metrics.jsonl, it is damaged, no step is in it yet, or stages overlap.
    """
    steps: list[Record] = []
    evaluations: list[Record] = []
    for folder in run_dirs:
        path = Path(folder) / FILE_NAME
        if not path.is_file():
            raise ConfigError(f"{path} does not exist: give the run directory, as in logging.directory")
        found, evaluated = read_metrics(path)
        if not found:
            raise ConfigError(f"{path} has no step yet: draw it once the run has trained one")
        if steps and found[0]["step"] <= steps[-1]["step"]:
            raise ConfigError(f"{path} begins at step {found[0]['step']}, before {run_dirs[0]} ends: not its growth")
        steps += found
        evaluations += evaluated
    figure = run_figure(steps, evaluations)
    Path(out_png).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out_png, dpi=120)


def run_figure(steps: Sequence[Record], evaluations: Sequence[Record]) -> Figure:
    """Return the figure of a run's records, as `read_metrics` gives them; `steps` must not be empty."""
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    FigureCanvasAgg(figure)  # no pyplot: it keeps every figure in a global list
    axes = figure.subplots(3, 2, sharex="col", sharey="row", height_ratios=(4, 1.2, 1.2), squeeze=False)
    for column, clock in enumerate(("step", "tokens")):
        position = _column(steps, clock)
        _draw_loss(axes[0, column], position, steps, evaluations, clock)
        _draw_length(axes[1, column], position, _column(steps, "seq_len"))
        chosen = _thinned(len(steps))
        axes[2, column].plot(position[chosen], _column(steps, "lr")[chosen], color=INK, linewidth=1.2)
        axes[2, column].margins(y=0.12)
        for axis in axes[:, column]:
            for record in steps:
                if record.get("resumed"):
                    axis.axvline(record[clock], color=INK, linewidth=0.9, linestyle=RESUMED)
                if "grown_from" in record:
                    axis.axvline(record[clock], color=INK, linewidth=0.9, linestyle=GROWN)
            axis.grid(color="#e6e6e6", linewidth=0.6)
            axis.spines[["top", "right"]].set_visible(False)
        axes[2, column].set_xlim(0, position[-1])
        axes[2, column].xaxis.set_major_locator(MaxNLocator(6, integer=True))
    _label(axes, steps)
    figure.suptitle(finding(steps, evaluations), fontsize=13, x=0.01, horizontalalignment="left")
    return figure


def finding(steps: Sequence[Record], evaluations: Sequence[Record]) -> str:
    """Return in one line what came out: the last validation loss, and what it took."""
    last = steps[-1]
    lengths = [record["seq_len"] for record in steps]
    span = (
        f"length {lengths[0]}" if min(lengths) == max(lengths) else f"lengths {lengths[0]} to {lengths[-1]}"
    )
    grown = "".join(f", grown at step {record['step'] - 1:,}" for record in steps if "grown_from" in record)
    cost = f"after {last['step']:,} steps and {count_text(last['tokens'])} tokens, {span}{grown}"
    losses = [
        (record["val_loss"], record["step"]) for record in evaluations if record["val_loss"] is not None
    ]
    if not losses:
        tail = smooth(_column(steps, "loss"))
        return f"Training loss {tail[-1]:.3f} {cost} (no validation)"
    final, best = losses[-1], min(losses)
    if final[1] != last["step"]:
        cost = f"at step {final[1]:,}; {cost.replace('after', 'now', 1)}"
    lowest = f" (lowest {best[0]:.3f} at step {best[1]:,})" if best[0] < final[0] else ""
    return f"Validation loss {final[0]:.3f}{lowest} {cost}"


def _draw_loss(
    axis: Axes, position: Floats, steps: Sequence[Record], evaluations: Sequence[Record], clock: str
) -> None:
    loss = _column(steps, "loss")
    chosen = _thinned(len(loss))
    dots = "." if len(loss) <= FEW_STEPS else ""
    single = "training, single steps"
    axis.plot(position[chosen], loss[chosen], color=GREY, linewidth=0.7, marker=dots, label=single)
    axis.plot(position[chosen], smooth(loss)[chosen], color=INK, linewidth=1.6, label="training, smoothed")
    if evaluations:
        axis.plot(
            _column(evaluations, clock),
            _column(evaluations, "val_loss"),
            color=INK,
            linestyle="--",
            linewidth=0.9,
            marker="o",
            markersize=5.5,
            markerfacecolor="white",
            label="validation, full length",
            zorder=3,
            clip_on=False,  # the last point lies on the edge
        )


def _draw_length(axis: Axes, position: Floats, length: Floats) -> None:
    """A staircase through the steps where the length changes; a record holds up to its own position."""
    corners = np.flatnonzero(np.diff(length, append=np.nan))  # the last step of every length
    axis.plot(
        np.concatenate(([0.0], position[corners])),
        np.concatenate((length[:1], length[corners])),
        color=INK,
        linewidth=1.2,
        drawstyle="steps-pre",
    )
    axis.set_ylim(0, 1.12 * float(length.max()))


def _label(axes: NDArray[Any], steps: Sequence[Record]) -> None:
    tokens = steps[-1]["tokens"]
    axes[0, 0].set_ylabel("loss (nats per token)")
    axes[1, 0].set_ylabel("sequence length\n(tokens)")
    axes[2, 0].set_ylabel("learning rate")
    axes[2, 0].ticklabel_format(axis="y", style="sci", scilimits=(0, 0), useMathText=True)
    axes[2, 0].set_ylim(bottom=0)
    axes[2, 0].set_xlabel("optimizer steps")
    axes[2, 0].xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    size, unit = next(((s, u) for s, u in ((1e9, "billions"), (1e6, "millions")) if tokens >= s), (1.0, ""))
    axes[2, 1].set_xlabel(f"tokens trained ({unit})" if unit else "tokens trained")
    axes[2, 1].xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / size:,.4g}"))
    if any(record.get("resumed") for record in steps):
        axes[0, 0].plot([], [], color=INK, linewidth=0.9, linestyle=RESUMED, label="resumed")
    grown = [record["grown_from"] for record in steps if "grown_from" in record]
    if grown:
        label = f"grown from {grown[0]}" if len(grown) == 1 else "grown"
        axes[0, 0].plot([], [], color=INK, linewidth=0.9, linestyle=GROWN, label=label)
    # On a page of its own: the mark of a growth or a resume would go through the words.
    axes[0, 0].legend(facecolor="white", edgecolor="none", framealpha=1, fontsize=9, loc="upper right")


def _column(records: Sequence[Record], name: str) -> Floats:
    """One field of all records; null (a number that was not finite) becomes nan, which leaves a gap."""
    return np.array(
        [np.nan if record[name] is None else record[name] for record in records], dtype=np.float64
    )


def _thinned(count: int) -> NDArray[np.int64]:
    """Indices of at most MAX_POINTS records, evenly spaced, with the first and the last."""
    return np.unique(np.linspace(0, count - 1, min(count, MAX_POINTS)).astype(np.int64))
