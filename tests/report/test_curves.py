"""The picture of a run: what is drawn where, its title, and the file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from megatron_slw.config.errors import ConfigError
from megatron_slw.progress import Progress
from megatron_slw.report.curves import MAX_POINTS, draw_run, finding, run_figure
from megatron_slw.train.metrics import MetricsWriter, Record, StepMetrics


def history(steps: int = 400, resumed_at: int | None = 200) -> tuple[list[Record], list[Record]]:
    """4 rows a step, 8 tokens long up to step 100, then 32; validated every hundredth step."""
    records: list[Record] = []
    evaluations: list[Record] = []
    tokens = 0
    for step in range(1, steps + 1):
        length = 8 if step <= 100 else 32
        tokens += 4 * length
        record: dict[str, Any] = {"step": step, "tokens": tokens, "samples": 4 * step, "seq_len": length}
        record |= {"loss": 2 + 50 / (step + 9) + 0.1 * (-1) ** step, "lr": 1e-3 / step}
        if step == resumed_at:
            record["resumed"] = True
        records.append(record)
        if step % 100 == 0:
            evaluations.append({"step": step, "tokens": tokens, "val_loss": 3 - step / 1000})
    return records, evaluations


def panels(figure: Figure) -> np.ndarray[Any, Any]:
    return np.array(figure.axes).reshape(3, 2)


def line(axis: Any, label: str) -> tuple[list[float], list[float]]:
    (found,) = [line for line in axis.lines if line.get_label() == label and len(line.get_xdata())]
    return list(found.get_xdata()), list(found.get_ydata())


def test_losses_are_drawn_against_steps_and_against_tokens() -> None:
    steps, evaluations = history()
    axes = panels(run_figure(steps, evaluations))
    for column, clock in enumerate(("step", "tokens")):
        x, y = line(axes[0, column], "training, single steps")
        assert x == [record[clock] for record in steps]
        assert y == [record["loss"] for record in steps]
        x, y = line(axes[0, column], "validation, full length")
        assert x == [record[clock] for record in evaluations]
        assert y == [record["val_loss"] for record in evaluations]


def test_the_smoothed_line_lies_between_and_keeps_both_ends() -> None:
    steps, evaluations = history()
    _, smooth = line(panels(run_figure(steps, evaluations))[0, 0], "training, smoothed")
    truth = [2 + 50 / (step + 9) for step in range(1, 401)]
    assert smooth[0] == steps[0]["loss"]
    assert max(abs(a - b) for a, b in zip(smooth[20:], truth[20:], strict=True)) < 0.05


def test_the_length_changes_where_it_did() -> None:
    steps, evaluations = history()
    axes = panels(run_figure(steps, evaluations))
    staircase = axes[1, 0].lines[0]
    assert list(staircase.get_xdata()) == [0, 100, 400]
    assert list(staircase.get_ydata()) == [8, 8, 32]
    assert staircase.get_drawstyle() == "steps-pre"
    assert list(axes[1, 1].lines[0].get_xdata()) == [0, 3200, 3200 + 300 * 128]


def test_every_axis_says_what_it_shows_with_its_unit() -> None:
    axes = panels(run_figure(*history()))
    assert [axis.get_ylabel().replace("\n", " ") for axis in axes[:, 0]] == [
        "loss (nats per token)",
        "sequence length (tokens)",
        "learning rate",
    ]
    assert [axis.get_xlabel() for axis in axes[2]] == ["optimizer steps", "tokens trained"]
    long_run = [{**record, "tokens": record["tokens"] * 1000} for record in history()[0]]
    assert panels(run_figure(long_run, []))[2, 1].get_xlabel() == "tokens trained (millions)"


@pytest.mark.parametrize("resumed_at", [None, 200])
def test_a_resume_is_marked_in_every_panel(resumed_at: int | None) -> None:
    steps, evaluations = history(resumed_at=resumed_at)
    figure = run_figure(steps, evaluations)
    axes: list[Any] = list(figure.axes)
    marks = [line for axis in axes for line in axis.lines if len(set(line.get_xdata())) == 1]
    assert len(marks) == (0 if resumed_at is None else 6)
    legend = [text.get_text() for text in axes[0].get_legend().get_texts()]
    assert ("resumed" in legend) == (resumed_at is not None)


def test_a_growth_is_marked_in_every_panel_and_told_from_a_resume() -> None:
    steps, evaluations = history(resumed_at=100)
    steps[250]["grown_from"] = "2 layers x 96 at step 250"
    figure = run_figure(steps, evaluations)
    axes: list[Any] = list(figure.axes)
    for axis, at in zip(axes, 3 * [steps[250]["step"], steps[250]["tokens"]], strict=True):
        (mark,) = [x for x in axis.lines if set(x.get_xdata()) == {at}]
        resumed = [x for x in axis.lines if len(set(x.get_xdata())) == 1 and x is not mark]
        assert mark.get_linestyle() == "-" and [x.get_linestyle() != "-" for x in resumed] == [True]
    assert finding(steps, evaluations).endswith(" lengths 8 to 32, grown at step 250")
    legend = [text.get_text() for text in axes[0].get_legend().get_texts()]
    assert "grown from 2 layers x 96 at step 250" in legend and "resumed" in legend


def test_the_title_says_the_finding() -> None:
    steps, evaluations = history()
    assert finding(steps, evaluations) == (
        "Validation loss 2.600 after 400 steps and 41,600 tokens, lengths 8 to 32"
    )
    assert run_figure(steps, evaluations).get_suptitle() == finding(steps, evaluations)


def test_the_title_of_a_run_that_got_worse_or_is_not_done() -> None:
    steps, evaluations = history()
    worse = [*evaluations[:-1], {**evaluations[-1], "val_loss": 2.9}]
    assert "2.900 (lowest 2.700 at step 300) after 400" in finding(steps, worse)
    assert "2.700 at step 300; now 400 steps" in finding(steps, evaluations[:-1])
    assert finding(steps[:50], []).startswith("Training loss 2.")
    assert finding(steps[:50], []).endswith("after 50 steps and 1,600 tokens, length 8 (no validation)")
    assert "no validation" in finding(steps, [{"step": 5, "tokens": 9, "val_loss": None}])


def test_numbers_that_were_not_finite_leave_a_gap() -> None:
    steps, evaluations = history()
    steps[250]["loss"] = None
    axis = panels(run_figure(steps, evaluations))[0, 0]
    assert np.isnan(line(axis, "training, single steps")[1][250])
    assert not np.isnan(line(axis, "training, smoothed")[1]).any()


def test_a_long_run_is_thinned_with_both_ends() -> None:
    steps, evaluations = history(steps=20_000)
    x, _ = line(panels(run_figure(steps, evaluations))[0, 0], "training, single steps")
    assert len(x) <= MAX_POINTS and (x[0], x[-1]) == (1, 20_000)


@pytest.mark.parametrize("count", [1, 3, 60])
def test_a_file_is_drawn(tmp_path: Path, count: int) -> None:
    with MetricsWriter(tmp_path, Progress()) as writer:
        for step in range(1, count + 1):
            writer.step(StepMetrics(step, 8 * step, step, 8, 5.0 / step, 1e-3, 0.5, 0.1, 80.0, None))
            writer.evaluation(Progress(step, step, 8 * step), 5.5 / step)
    draw_run([tmp_path], tmp_path / "pictures" / "report.png")
    pixels = imread(tmp_path / "pictures" / "report.png")
    assert pixels.shape[:2] == (900, 1320)
    assert pixels[..., :3].min() < 0.2 and pixels[..., :3].mean() > 0.9, "dark ink on a light page"
    assert np.ptp(pixels[..., :3], axis=2).max() < 0.02, "a colour that a black and white print would lose"


@pytest.mark.parametrize(
    ("text", "word"), [(None, "does not exist"), ("", "no step yet"), ("{\n{}\n", "line 1")]
)
def test_a_directory_without_a_run_is_a_sentence(tmp_path: Path, text: str | None, word: str) -> None:
    if text is not None:
        (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(ConfigError, match=word):
        draw_run([tmp_path], tmp_path / "report.png")


def test_stages_between_growths_are_one_curve(tmp_path: Path) -> None:
    for folder, first in (("small", 1), ("grown", 4)):
        start = Progress(first - 1, first - 1, 8 * (first - 1))
        grown = {"grown_from": "1 layers x 8 at step 3"} if first > 1 else None
        with MetricsWriter(tmp_path / folder, start, grown=grown) as writer:
            for step in range(first, first + 3):
                writer.step(StepMetrics(step, 8 * step, step, 8, 5.0 / step, 1e-3, 0.5, 0.1, 80.0, None))
    draw_run([tmp_path / "small", tmp_path / "grown"], tmp_path / "report.png")
    assert (tmp_path / "report.png").is_file()
    with pytest.raises(ConfigError, match="begins at step 1"):
        draw_run([tmp_path / "grown", tmp_path / "small"], tmp_path / "report.png")


def test_neither_torch_nor_pyplot_is_imported() -> None:
    code = (
        "import sys, megatron_slw.report.curves; "
        "sys.exit('torch' in sys.modules or 'matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
