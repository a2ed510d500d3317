"""What a person sees while a run trains: a progress bar on a terminal, one line per step elsewhere."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import Any, TextIO, cast

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as RichProgress

from megatron_slw.progress import Progress
from megatron_slw.slw.plan import Plan
from megatron_slw.train.metrics import StepMetrics
from megatron_slw.train.units import count_text, duration_text, rate_text

RECENT_STEPS = 50
REFRESH_S = 0.2


class Speed:
    """Tokens per second over the recent steps, and from it the time left.

    Time is reckoned by tokens, not steps: under a length warmup the steps to come are longer than those seen.
    """

    def __init__(self, total_tokens: int, done_tokens: int) -> None:
        self.total_tokens, self._done = total_tokens, done_tokens
        self._recent: deque[tuple[float, int]] = deque(maxlen=RECENT_STEPS)

    def update(self, step_time_s: float, tokens_so_far: int) -> None:
        """Take in one step: its seconds, and the tokens trained so far with it."""
        self._recent.append((step_time_s, tokens_so_far - self._done))
        self._done = tokens_so_far

    @property
    def tokens_per_s(self) -> float:
        """Over the last RECENT_STEPS steps; nan before the first."""
        seconds = sum(entry[0] for entry in self._recent)
        return sum(entry[1] for entry in self._recent) / seconds if seconds > 0 else math.nan

    @property
    def seconds_left(self) -> float:
        """Until all tokens are trained, without evaluations and checkpoints; nan before the first step."""
        rate = self.tokens_per_s
        return (self.total_tokens - self._done) / rate if rate > 0 else math.nan


def step_line(metrics: StepMetrics, total_steps: int, speed: Speed) -> str:
    """Return one step as a line for a log file."""
    return " | ".join(
        (
            f"step {metrics.step}/{total_steps}",
            f"tokens {count_text(metrics.tokens)}",
            f"len {metrics.seq_len}",
            f"loss {metrics.loss:.4f}",
            f"ratio {metrics.loss_ratio:.2f}",
            f"lr {metrics.lr:.2e}",
            f"gnorm {metrics.grad_norm:.2f}",
            f"{rate_text(speed.tokens_per_s)} tok/s",
            f"{duration_text(speed.seconds_left)} left",
        )
    )


def bar_text(metrics: StepMetrics, total_steps: int, speed: Speed) -> str:
    """Return one step as the text beside a progress bar."""
    mantissa, exponent = f"{metrics.lr:.1e}".split("e")
    return "  ".join(
        (
            f"step {metrics.step}/{total_steps}",
            f"len {metrics.seq_len}",
            f"loss {metrics.loss:.2f}",
            f"lr {mantissa}e{int(exponent)}",
            f"{rate_text(speed.tokens_per_s)} tok/s",
            f"{duration_text(speed.seconds_left)} left",
        )
    )


class _Unbreakable:
    """A stream that drops what it cannot write.

    A log on a full disk, a pipe whose reader is gone or a terminal that was closed does not end a run of weeks.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class ProgressDisplay:
    """Shows a run's steps; a context manager, for rank 0 only.

    On a terminal a bar (filled by tokens, as the time left is) is redrawn in place, a few times a second at
    most; elsewhere a line is printed for every `interval`-th step and the last.
    """

    def __init__(
        self,
        plan: Plan,
        start: Progress,
        interval: int = 1,
        stream: TextIO | None = None,
        stop_after: int | None = None,
    ) -> None:
        """Show nothing yet.

        Args:
            plan: of the whole run.
            start: what was trained before the first step to be shown.
            interval: steps between lines, where `stream` is not a terminal.
            stream: where to; None is the standard output.
            stop_after: step of the plan to which bar and time left are reckoned; None is its last.
        """
        self._stream = cast(TextIO, _Unbreakable(sys.stdout if stream is None else stream))
        self._interval, self._stop_after = interval, stop_after
        self._steps, tokens = self._end(plan)
        self._speed = Speed(tokens, start.tokens)
        self._drawn = -math.inf
        self._bar: RichProgress | None = None
        # Not Console.is_terminal: FORCE_COLOR, which many CI systems set, would make it draw bars into log
        # files.
        console = Console(file=self._stream, force_terminal=self._stream.isatty())
        if console.is_terminal and not console.is_dumb_terminal:
            # No refresh thread: it would take time from the training on small machines.
            columns = (BarColumn(bar_width=None), TextColumn(" {task.description}"))
            self._bar = RichProgress(*columns, console=console, auto_refresh=False, expand=True)
            self._task = self._bar.add_task("", total=tokens, completed=start.tokens)
            self._bar.start()

    def replan(self, plan: Plan) -> None:
        """Take in another plan: a loss_adaptive schedule has decided."""
        self._steps, self._speed.total_tokens = self._end(plan)
        if self._bar is not None:
            self._bar.update(self._task, total=self._speed.total_tokens)

    def step(self, metrics: StepMetrics) -> None:
        """Take in one step, and show it if it is due."""
        self._speed.update(metrics.step_time_s, metrics.tokens)
        total = self._steps
        last = metrics.step == total
        if self._bar is not None:
            due = last or time.monotonic() - self._drawn >= REFRESH_S
            text = bar_text(metrics, total, self._speed)
            self._bar.update(self._task, completed=metrics.tokens, description=text, refresh=due)
            if due:
                self._drawn = time.monotonic()
        elif last or metrics.step % self._interval == 0:
            self.note(step_line(metrics, total, self._speed))

    def evaluation(self, progress: Progress, val_loss: float) -> None:
        """Show a validation loss."""
        self.note(f"step {progress.step}/{self._steps} | validation loss {val_loss:.4f}")

    def skipped(self, record: Mapping[str, Any]) -> None:
        """Take in that a step was left out: its tokens will not come."""
        self._speed.total_tokens -= record["tokens_skipped"]
        if self._bar is not None:
            self._bar.update(self._task, total=self._speed.total_tokens)

    def scores(self, progress: Progress, scores: Mapping[str, Mapping[str, float]]) -> None:
        """Show what the tasks gave."""
        for task, figures in scores.items():
            found = ", ".join(
                f"{name.replace('_', ' ')} {value:,.4f}" for name, value in figures.items() if isinstance(value, float)
            )
            self.note(f"step {progress.step}/{self._steps} | {task}: {found}")

    def note(self, text: str) -> None:
        """Print a line, above the bar if there is one."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Leave the terminal as it was found; the bar stays where it got to."""
        if self._bar is not None:
            self._bar.stop()

    def _end(self, plan: Plan) -> tuple[int, int]:
        """The step that is trained to, and the tokens trained by then."""
        if self._stop_after is None or self._stop_after >= plan.total_steps:
            return plan.total_steps, plan.tokens_trained
        return self._stop_after, plan.progress_at(self._stop_after).tokens

    def __enter__(self) -> ProgressDisplay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
