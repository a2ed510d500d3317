"""The progress display: exact lines, the time left by tokens, a bar on a terminal."""

from __future__ import annotations

import io
import math
import re

import pytest

from megatron_slw.progress import Progress
from megatron_slw.slw.plan import Plan, Run
from megatron_slw.train.metrics import StepMetrics
from megatron_slw.train.progress_display import ProgressDisplay, Speed, step_line
from megatron_slw.train.units import count_text, duration_text, rate_text

PLAN = Plan((Run(0, 8, 4), Run(5, 64, 4)), total_steps=10, full_length=64)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Broken(io.StringIO):
    """A file on a full disk, or a terminal that was closed."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal

    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")

    def flush(self) -> None:
        raise OSError(28, "No space left on device")


def metrics(step: int, loss: float = 4.0, step_time_s: float = 1.0, ratio: float = 1.0) -> StepMetrics:
    tokens = PLAN.progress_at(step).tokens
    return StepMetrics(step, tokens, 4 * step, 8, loss, 1.2e-3, 0.84, step_time_s, 32.0, None, ratio)


def test_the_line_has_the_shape_of_the_documentation() -> None:
    speed = Speed(total_tokens=1_336_200, done_tokens=968_000)
    speed.update(10.0, 1_019_000)
    shown = StepMetrics(612, 1_019_000, 4896, 224, 4.31274, 1.2e-3, 0.841, 10.0, 5100.0, None, 1.0123)
    assert step_line(shown, 800, speed) == (
        "step 612/800 | tokens 1.02 M | len 224 | loss 4.3127 | ratio 1.01 | lr 1.20e-03 | gnorm 0.84 "
        "| 5.1k tok/s | 1:02 left"
    )


def test_time_left_is_weighted_by_tokens() -> None:
    speed = Speed(PLAN.tokens_trained, 0)
    for step in range(1, 6):
        speed.update(0.25, PLAN.progress_at(step).tokens)
    assert speed.tokens_per_s == 32 / 0.25
    # Five steps are left, as many as were done, but each is eight times as long.
    assert speed.seconds_left == pytest.approx(5 * 8 * 0.25)


def test_time_left_forgets_a_slow_start() -> None:
    speed = Speed(100_000, 0)
    speed.update(600.0, 10)
    for step in range(2, 60):
        speed.update(1.0, 10 * step)
    assert speed.tokens_per_s == pytest.approx(10.0)


def test_after_a_resume_the_tokens_before_it_do_not_count_as_speed() -> None:
    speed = Speed(1000, done_tokens=900)
    assert math.isnan(speed.seconds_left)
    speed.update(1.0, 910)
    assert speed.seconds_left == pytest.approx(9.0)


def test_lines_at_the_interval_and_the_last_step() -> None:
    stream = io.StringIO()
    with ProgressDisplay(PLAN, Progress(), interval=4, stream=stream) as display:
        for step in range(1, 11):
            display.step(metrics(step))
            if step == 5:
                display.evaluation(PLAN.progress_at(5), 4.25)
    lines = stream.getvalue().splitlines()
    assert [line.split(" | ")[0] for line in lines] == ["step 4/10", "step 5/10", "step 8/10", "step 10/10"]
    assert lines[1] == "step 5/10 | validation loss 4.2500"
    assert lines[-1].endswith("| 0:00 left")


def test_a_run_that_stops_earlier_is_shown_to_its_stop() -> None:
    stream = io.StringIO()
    with ProgressDisplay(PLAN, Progress(), interval=4, stream=stream, stop_after=6) as display:
        for step in range(1, 7):
            display.step(metrics(step))
        display.replan(PLAN)
        display.evaluation(PLAN.progress_at(6), 4.25)
    lines = stream.getvalue().splitlines()
    assert [line.split(" | ")[0] for line in lines] == ["step 4/6", "step 6/6", "step 6/6"]
    assert lines[1].endswith("| 0:00 left") and not lines[0].endswith("| 0:00 left")
    beyond = io.StringIO()
    with ProgressDisplay(PLAN, Progress(), stream=beyond, stop_after=600) as display:
        display.step(metrics(1))
    assert beyond.getvalue().startswith("step 1/10 ")


def test_the_ratio_shown_is_the_one_measured() -> None:
    """The display reckoned its own, which began anew with each resume."""
    stream = io.StringIO()
    with ProgressDisplay(PLAN, Progress(), stream=stream) as display:
        for step, ratio in enumerate((1.0, 0.5, 1.5, math.nan), start=1):
            display.step(metrics(step, ratio=ratio))
    assert re.findall(r"ratio (\S+)", stream.getvalue()) == ["1.00", "0.50", "1.50", "nan"]


def test_a_log_file_gets_no_control_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    stream = io.StringIO()
    with ProgressDisplay(PLAN, Progress(), stream=stream) as display:
        display.step(metrics(1))
        display.note("[saved]")
    assert "\x1b" not in stream.getvalue()
    assert stream.getvalue().endswith("[saved]\n")


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "110")
    stream = Terminal()
    with ProgressDisplay(PLAN, Progress(), stream=stream) as display:
        for step in range(1, 11):
            display.step(metrics(step))
        display.note("[saved]")
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    assert "step 10/10  len 8  loss 4.00  lr 1.2e-3  144 tok/s  0:00 left" in plain
    assert "━" in plain and "[saved]" in plain
    assert " | " not in plain
    assert stream.getvalue().endswith("\x1b[?25h"), "the cursor stays hidden"


def test_the_bar_ends_with_the_last_step_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "110")
    stream = Terminal()
    with ProgressDisplay(PLAN, Progress(), stream=stream) as display:
        for step in range(1, 8):  # faster than the bar is redrawn, and stopped before the end
            display.step(metrics(step))
        assert "step 1/10" in stream.getvalue()
    assert "step 7/10" in stream.getvalue()


def test_a_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    with ProgressDisplay(PLAN, Progress(), stream=stream) as display:
        display.step(metrics(1))
    assert stream.getvalue().startswith("step 1/10 | ")


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (812, "812"),
        (51_200, "51,200"),
        (999_999, "999,999"),
        (1_019_000, "1.02 M"),
        (157_286_400_000, "157.29 B"),
        (2.5e12, "2.50 T"),
    ],
)
def test_counts(count: int, text: str) -> None:
    assert count_text(count) == text


@pytest.mark.parametrize(
    ("rate", "text"),
    [(87.4, "87"), (999.4, "999"), (999.6, "1.0k"), (5149, "5.1k"), (31_415, "31k"), (1.2e6, "1.2M")]
    + [(math.nan, "-"), (999_700, "1.0M"), (9960, "10k")],
)
def test_rates(rate: float, text: str) -> None:
    assert rate_text(rate) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0:00"), (62, "1:02"), (3599.4, "59:59"), (3600, "1:00:00"), (53_640, "14:54:00")]
    + [(266_400, "3 d 2 h"), (math.nan, "-")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


@pytest.mark.parametrize("terminal", [False, True])
def test_what_cannot_be_shown_ends_no_run(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    with ProgressDisplay(PLAN, Progress(), stream=Broken(terminal)) as display:
        display.note("hello")
        display.step(metrics(1))
        display.step(metrics(10))
