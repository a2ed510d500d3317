"""metrics.jsonl: what a line holds, what a resume and a kill leave, and the same in TensorBoard."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest

from megatron_slw.config.errors import ConfigError
from megatron_slw.progress import Progress
from megatron_slw.train.metrics import FILE_NAME, MAX_LINE, MetricsWriter, StepMetrics, read_metrics
from megatron_slw.train.tensorboard_events import TensorBoardWriter


def metrics(step: int, loss: float = 4.0, grad_norm: float = 0.5, mfu: float | None = None) -> StepMetrics:
    return StepMetrics(
        step=step,
        tokens=100 * step,
        samples=2 * step,
        seq_len=50,
        loss=loss,
        lr=1e-3,
        grad_norm=grad_norm,
        step_time_s=0.25,
        tokens_per_s=400.0,
        mfu=mfu,
        loss_ratio=0.5,
        loss_ratio_count=3,
        spike_score=0.25,
        variance_sqrt_l1=7.0,
        variance_sqrt_abs_max=0.125,
        flops=10**21 * step,
        tokens_discarded=9 * step,
    )


def progress(step: int) -> Progress:
    return Progress(step, 2 * step, 100 * step)


def write(folder: Path, start: int, stop: int, tensorboard: bool = False) -> None:
    """Steps start + 1 to stop, an evaluation after every second."""
    with contextlib.ExitStack() as stack:
        loggers = []
        if tensorboard:
            loggers = [TensorBoardWriter(folder / "tensorboard", progress(start))]
            stack.enter_context(contextlib.closing(loggers[0]))
        writer = stack.enter_context(MetricsWriter(folder, progress(start), loggers=loggers))
        for step in range(start + 1, stop + 1):
            writer.step(metrics(step, loss=10.0 / step))
            if step % 2 == 0:
                writer.evaluation(progress(step), 11.0 / step)


def test_one_object_per_step_and_evaluation(tmp_path: Path) -> None:
    write(tmp_path / "new" / "run", 0, 2)
    lines = (tmp_path / "new" / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        asdict(metrics(1, loss=10.0)),
        asdict(metrics(2, loss=5.0)),
        {"step": 2, "tokens": 200, "val_loss": 5.5},
    ]
    assert list(json.loads(lines[0])) == (
        "step tokens samples seq_len loss lr grad_norm step_time_s tokens_per_s mfu loss_ratio loss_ratio_count "
        "spike_score variance_sqrt_l1 variance_sqrt_abs_max flops tokens_discarded".split()
    )


def test_a_line_is_on_disk_before_the_next_step(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path, Progress()) as writer:
        writer.step(metrics(1))
        assert len(read_metrics(tmp_path / FILE_NAME)[0]) == 1


def test_numbers_that_are_not_finite_become_null(tmp_path: Path) -> None:
    tensorboard = TensorBoardWriter(tmp_path / "tensorboard", Progress())
    with contextlib.closing(tensorboard), MetricsWriter(tmp_path, Progress(), loggers=[tensorboard]) as writer:
        writer.step(metrics(1, loss=float("nan"), grad_norm=float("inf")))
        writer.evaluation(progress(1), float("-inf"))
    text = (tmp_path / FILE_NAME).read_text()
    assert "NaN" not in text and "Infinity" not in text
    (step,), (evaluation,) = read_metrics(tmp_path / FILE_NAME)
    assert step["loss"] is None and step["grad_norm"] is None and step["mfu"] is None
    assert evaluation["val_loss"] is None


@pytest.mark.parametrize("killed_after", [4, 5, 6, 9])
def test_a_resume_leaves_each_step_once(tmp_path: Path, killed_after: int) -> None:
    write(tmp_path, 0, killed_after)
    write(tmp_path, 4, 8)
    steps, evaluations = read_metrics(tmp_path / FILE_NAME)
    assert [record["step"] for record in steps] == list(range(1, 9))
    assert [record["step"] for record in evaluations] == [2, 4, 6, 8]
    assert [record["step"] for record in steps if "resumed" in record] == [5]
    assert sorted(path.name for path in tmp_path.iterdir()) == [FILE_NAME]


def test_a_new_run_in_an_old_directory_starts_a_new_history(tmp_path: Path) -> None:
    for last in (6, 3):
        with MetricsWriter(tmp_path, Progress()) as writer:
            writer.evaluation(Progress(), 11.0)
            for step in range(1, last + 1):
                writer.step(metrics(step))
    steps, evaluations = read_metrics(tmp_path / FILE_NAME)
    assert [record["step"] for record in steps] == [1, 2, 3]
    assert [record["step"] for record in evaluations] == [0]


def test_a_cut_last_line_is_left_out_at_every_byte(tmp_path: Path) -> None:
    write(tmp_path, 0, 3)
    path = tmp_path / FILE_NAME
    whole = path.read_bytes()
    start = whole.rindex(b"\n", 0, len(whole) - 1) + 1
    for end in range(start, len(whole) - 1):
        path.write_bytes(whole[:end])
        assert [record["step"] for record in read_metrics(path)[0]] == [1, 2]


def test_a_resume_after_a_cut_line_does_not_join_lines(tmp_path: Path) -> None:
    write(tmp_path, 0, 3)
    path = tmp_path / FILE_NAME
    for lost in (1, 30):  # only the line's end, or more of it
        path.write_bytes(path.read_bytes()[:-lost])
        write(tmp_path, 3, 5)
        assert [record["step"] for record in read_metrics(path)[0]][-2:] == [4, 5]
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:4]))


def test_a_kill_while_cutting_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 0, 6)
    before = (tmp_path / FILE_NAME).read_bytes()

    def killed(path: Path, target: Path) -> None:
        raise KeyboardInterrupt("before the rename")

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        MetricsWriter(tmp_path, progress(4))
    assert (tmp_path / FILE_NAME).read_bytes() == before


@pytest.mark.parametrize("line", ["{broken", "[1]", '{"loss": 1.0}', '{"step": "3"}', ""], ids=repr)
def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / FILE_NAME
    path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    with pytest.raises(ConfigError, match="line 2"):
        read_metrics(path)


def test_a_file_without_line_ends_is_not_read_into_memory(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    path.write_bytes(b"[" * (3 * MAX_LINE))  # too deep for the parser as well
    with pytest.raises(ConfigError, match="line 1 "):
        read_metrics(path)


def test_tensorboard_has_each_committed_step_once(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    write(tmp_path, 0, 6, tensorboard=True)
    write(tmp_path, 4, 8, tensorboard=True)

    def scalars(run: str, tag: str) -> list[tuple[int, Any]]:
        events = accumulator.EventAccumulator(str(tmp_path / "tensorboard" / run))
        events.Reload()
        return [(event.step, pytest.approx(event.value, rel=1e-6)) for event in events.Scalars(tag)]

    losses = [10.0 / step for step in range(1, 9)]
    assert list(zip(range(1, 9), losses, strict=True)) == scalars("by_step", "train/loss")
    assert list(zip(range(100, 900, 100), losses, strict=True)) == scalars(
        "by_tokens", "train/loss_by_tokens"
    )
    assert [(step, 11.0 / step) for step in (2, 4, 6, 8)] == scalars("by_step", "validation/loss")
    for field in fields(StepMetrics):
        if field.name not in ("step", "samples", "step_time_s", "mfu"):
            assert len(scalars("by_step", f"train/{field.name}")) == 8
    for name in ("loss_ratio", "grad_norm", "variance_sqrt_l1", "variance_sqrt_abs_max"):
        assert [at for at, _ in scalars("by_tokens", f"train/{name}_by_tokens")] == list(range(100, 900, 100))


def test_scores_of_tasks_are_lines_of_their_own_and_scalars(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    figures = {"lambada": {"examples": 9, "accuracy": 0.25, "perplexity": float("inf")}}
    for start in (0, 2):  # killed after step 3, resumed from step 2
        tensorboard = TensorBoardWriter(tmp_path / "tensorboard", progress(start))
        with contextlib.closing(tensorboard), MetricsWriter(tmp_path, progress(start), loggers=[tensorboard]) as writer:
            for step in range(start + 1, 4):
                writer.step(metrics(step))
                writer.scores(progress(step), figures)
    lines = [json.loads(line) for line in (tmp_path / FILE_NAME).read_text().splitlines()]
    scores = [line for line in lines if "scores" in line]
    assert [(line["step"], line["tokens"]) for line in scores] == [(1, 100), (2, 200), (3, 300)]
    assert scores[0]["scores"] == {"lambada": {"examples": 9, "accuracy": 0.25, "perplexity": None}}
    steps, evaluations = read_metrics(tmp_path / FILE_NAME)
    assert (len(steps), evaluations) == (3, []), "readers of losses do not meet them"
    for run, tag, at in (("by_step", "", [1, 2, 3]), ("by_tokens", "_by_tokens", [100, 200, 300])):
        events = accumulator.EventAccumulator(str(tmp_path / "tensorboard" / run))
        events.Reload()
        assert [event.step for event in events.Scalars(f"tasks/lambada/accuracy{tag}")] == at
        assert not {f"tasks/lambada/{name}{tag}" for name in ("examples", "perplexity")} & set(events.Tags()["scalars"])


def test_no_torch_is_imported() -> None:
    """The report reads metrics on machines that only look at runs."""
    code = (
        "import sys, megatron_slw.train.metrics, megatron_slw.train.progress_display, "
        "megatron_slw.train.learning_rate; sys.exit('torch' in sys.modules or 'tensorboard' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_field_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    steps = page.split("## One line per step")[1].split("\n##")[0]
    documented = [line.split("`")[1] for line in steps.splitlines() if line.startswith("| `")]
    assert documented == [field.name for field in fields(StepMetrics)]
