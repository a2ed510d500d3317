"""What a person reads of a tuning: what it will cost, how it goes, what was tried and why it chose."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from typing import TextIO

from megatron_slw.config.curriculum import LEGACY_KEY, NEW_KEY
from megatron_slw.slw.tuning import Choice, Probe, smoothest_path
from megatron_slw.slw.tuning_space import LONGEST_SHARE
from megatron_slw.train.tune_job import TuneJob
from megatron_slw.train.tune_probe import Reading
from megatron_slw.train.tune_state import Result, stability
from megatron_slw.train.units import count_text, duration_text

LINE_S = 10.0
"""Between lines on a log that is not a terminal."""


def announcement(job: TuneJob) -> str:
    """What will be done, and what it costs at least and at most."""
    run, space = job.run_flops(), job.space
    longest = max(row[-1] for row in space.durations)
    durations = f"durations {job.steps:,} to {longest:,} steps" if longest > job.steps else f"duration {job.steps:,}"
    smooth, most = _probes(len(smoothest_path(space))), _probes(job.most_probes())
    return "\n".join(
        (
            f"probes of {job.steps:,} steps, validated every {job.interval:,} on {job.samples:,} windows; above "
            f"{job.limit:g} x the best perplexity so far is a fluctuation",
            f"start lengths {', '.join(map(str, space.starts))}; {durations}",
            f"{smooth} and {_share(job.least_flops(), run)} of the run's {run:.3g} FLOPs if nothing fluctuates, at "
            f"most {most} and {_share(job.most_flops(), run)}",
        )
    )


def possible_probes(job: TuneJob) -> str:
    """Every probe there may be, with its cost: each start length, then each duration with the shortest start."""
    lines, space = ["start  duration  tokens      share of the run"], job.space
    run = job.run_flops()
    probes = [Probe(start, job.steps) for start in space.starts]
    longer = [Probe(space.starts[0], duration) for duration in space.durations[0][1:]]
    for number, probe in enumerate([*probes, *longer]):
        if number == len(probes):
            lines.append(f"then, with the start chosen (here {space.starts[0]}), some of")
        tokens, flops = job.probe_cost(probe, job.steps)
        lines.append(f"{probe[0]:5,}  {probe[1]:8,}  {count_text(tokens):10}  {_share(flops, run)}")
    return "\n".join([*lines, "nothing was trained."])


def conclusion(job: TuneJob, results: Sequence[Result], choice: Choice) -> str:
    """What was tried, what was chosen and why, what that cost, and the block to paste."""
    parts = [table(job, results), f"{reason(job, results, choice)}\n{spent(job, results)}"]
    if choice.probe is not None:
        tree = job.chosen_tree(choice.probe)
        parts.append(json.dumps({name: tree[name] for name in (LEGACY_KEY, NEW_KEY) if name in tree}, indent=2))
    return "\n\n".join(parts)


def table(job: TuneJob, results: Sequence[Result]) -> str:
    """What was tried."""
    return "\n".join(["start  duration  worst ratio  at step  verdict", *(_row(job, result) for result in results)])


def reason(job: TuneJob, results: Sequence[Result], choice: Choice) -> str:
    """Why this was chosen, or why nothing was."""
    by_probe = {result.probe: result for result in results}
    starts = job.space.starts
    if choice.probe is None:
        return (
            f"Nothing was chosen: at a duration of {job.steps:,} every start length tried fluctuated, up to "
            f"{starts[-1]}. Lower optimizer.params.lr, or lengthen its warmup."
        )
    start, duration = choice.probe
    first = f"Start {start}: it did not fluctuate, and is the shortest there is"
    if choice.shorter is not None:
        first = f"Start {start}: the shortest that did not fluctuate; {_fault(by_probe[choice.shorter], 'start')}"
    durations = job.space.durations[starts.index(start)]
    second = f"Duration {duration:,}: the longest that did not fluctuate"
    if choice.longer is not None:
        second += f"; {_fault(by_probe[choice.longer], 'duration')}"
    elif len(durations) > 1:
        second += f", and the longest there is (the warmup may take {round(100 * LONGEST_SHARE)} % of the run)"
    else:
        second = f"Duration {duration:,}: that of the probes; a longer one would not end within the run"
    return f"{first}.\n{second}."


def spent(job: TuneJob, results: Sequence[Result]) -> str:
    """What the probes cost in the end."""
    flops = sum(job.probe_flops(result.probe, result.steps) for result in results)
    return f"{_probes(len(results))} cost {_share(flops, job.run_flops())} of the run's FLOPs."


def _fault(result: Result, name: str) -> str:
    value = result.min_difficulty if name == "start" else f"{result.total_curriculum_step:,}"
    if result.worst_ratio is None:
        return f"{value} diverged at step {result.worst_step:,}"
    return f"{value} rose to {result.worst_ratio:.2f} x the best at step {result.worst_step:,}"


def _row(job: TuneJob, result: Result) -> str:
    ratio = "-" if result.worst_ratio is None else f"{result.worst_ratio:.3f}"
    where = "-" if result.worst_step is None else f"{result.worst_step:,}"
    verdict = "stable" if result.stable else "fluctuates" if result.worst_ratio is not None else "diverges"
    if result.steps < job.steps:
        verdict += f", stopped after {result.steps:,} of {job.steps:,} steps"
    return f"{result.min_difficulty:5,}  {result.total_curriculum_step:8,}  {ratio:>11}  {where:>7}  {verdict}"


def _probes(count: int) -> str:
    return f"{count} probe{'s' if count != 1 else ''}"


def _share(flops: int, run: int) -> str:
    return f"{100 * flops / run:.3g} %"


class TuneDisplay:
    """Shows how the probes go: one line redrawn in place on a terminal, else a line now and then."""

    def __init__(self, job: TuneJob, stream: TextIO) -> None:
        self._job, self._stream = job, stream
        self._most = job.most_probes()
        self._title = ""
        self._probe: Probe | None = None
        self._later = 0
        self._began: tuple[float, int] | None = None
        self._drawn = -math.inf

    def begin(self, probe: Probe, results: Sequence[Result]) -> None:
        """The next probe."""
        stable = stability(list(results))
        self._title = f"probe {len(results) + 1} of at most {self._most}: start {probe[0]:,}, duration {probe[1]:,}"
        self._probe, self._began = probe, None
        self._later = self._job.most_flops(stable) - self._job.probe_flops(probe)
        self._drawn = time.monotonic()
        self._say(self._title)

    def watch(self, reading: Reading) -> None:
        """How the probe stands."""
        now, redrawn = time.monotonic(), self._stream.isatty()
        if self._probe is None or not reading.steps:
            return
        done = self._job.probe_flops(self._probe, min(reading.steps, self._job.steps))
        if self._began is None:
            self._began = now, done
        if now - self._drawn < (0.0 if redrawn else LINE_S):
            return
        self._drawn = now
        seconds, flops = now - self._began[0], done - self._began[1]
        left = (self._job.probe_flops(self._probe) - done) * seconds / flops if flops else math.nan
        later = left + self._later * seconds / flops if flops else math.nan
        text = (
            f"step {reading.steps:,}/{self._job.steps:,} | worst ratio {reading.fluctuation.worst_ratio:.2f} | "
            f"{duration_text(left)} left, {duration_text(later)} for all at most"
        )
        self._stream.write(f"\r\033[K  {text}" if redrawn else f"  {text}\n")
        self._stream.flush()

    def end(self, result: Result) -> None:
        """What the probe gave."""
        if self._stream.isatty():
            self._stream.write("\r\033[K")
        self._say(_row(self._job, result))

    def _say(self, text: str) -> None:
        print(text, file=self._stream, flush=True)
