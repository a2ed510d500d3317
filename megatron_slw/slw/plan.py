"""The length plan: a whole schedule compiled, before the first step, into a short table that everybody reads.

The table is run-length coded, [(first_step, seq_len, rows)], with exact integer prefix sums of samples and
tokens, so any step of a run of any length is found by bisection. Trainer, loader, learning rate, dry run and
resume read this one table; nothing else decides a length or counts a token.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from megatron_slw.config.errors import ConfigError
from megatron_slw.config.schema import RunConfig
from megatron_slw.progress import INT64_MAX, Progress, whole_number
from megatron_slw.slw.schedule import next_change, seq_len_at


class Run(NamedTuple):
    """Steps of equal shape: from `first_step` (0-based) up to the next run's."""

    first_step: int
    seq_len: int
    rows: int
    """Global batch: rows over all data-parallel ranks."""


@dataclass(frozen=True)
class BatchStep:
    """One optimizer step: what shape it has and what was trained before it."""

    step: int
    """0-based."""
    seq_len: int
    rows: int
    """Global batch: rows over all data-parallel ranks."""
    samples_before: int
    tokens_before: int

    @property
    def tokens(self) -> int:
        """Labels this step trains."""
        return self.rows * self.seq_len

    @property
    def after(self) -> Progress:
        """The progress once this step is done."""
        return Progress(self.step + 1, self.samples_before + self.rows, self.tokens_before + self.tokens)


@dataclass(frozen=True)
class Plan:
    """The shape of every step of a run.

    Raises:
        ConfigError: the table is not a valid plan (naming the field).
    """

    runs: tuple[Run, ...]
    total_steps: int
    full_length: int
    _first_steps: list[int] = field(init=False, repr=False, compare=False)
    _before: list[Progress] = field(init=False, repr=False, compare=False)
    """Progress at the start of each run, then at the end of the last: one entry more than runs."""

    def __post_init__(self) -> None:
        _check(self.runs, self.total_steps, self.full_length)
        first_steps = [run.first_step for run in self.runs]
        before = [Progress()]
        for run, end in zip(self.runs, [*first_steps[1:], self.total_steps], strict=True):
            samples, tokens = before[-1].samples, before[-1].tokens
            rows = (end - run.first_step) * run.rows
            before.append(Progress(end, samples + rows, tokens + rows * run.seq_len))
        if before[-1].samples * self.full_length > INT64_MAX:
            raise ConfigError(
                f"plan reads {before[-1].samples} samples of {self.full_length} tokens: no 64-bit count"
            )
        object.__setattr__(self, "_first_steps", first_steps)
        object.__setattr__(self, "_before", before)

    def at(self, step: int) -> BatchStep:
        """Return the step of this 0-based index; IndexError outside [0, total_steps)."""
        if not 0 <= step < self.total_steps:
            raise IndexError(f"step {step} is not in the plan: it has steps 0 to {self.total_steps - 1}")
        index = bisect_right(self._first_steps, step) - 1
        run, before = self.runs[index], self._before[index]
        rows = (step - run.first_step) * run.rows
        return BatchStep(
            step=step,
            seq_len=run.seq_len,
            rows=run.rows,
            samples_before=before.samples + rows,
            tokens_before=before.tokens + rows * run.seq_len,
        )

    def progress_at(self, step: int) -> Progress:
        """Return what was trained after the first `step` steps; IndexError outside [0, total_steps]."""
        if step == self.total_steps:
            return self._before[-1]
        batch = self.at(step)
        return Progress(step, batch.samples_before, batch.tokens_before)

    def steps_to_tokens(self, tokens: int) -> int:
        """Return the smallest number of steps after which at least `tokens` tokens were trained.

        Raises:
            ValueError: the whole plan trains fewer.
        """
        if tokens > self.tokens_trained:
            raise ValueError(f"the plan trains {self.tokens_trained} tokens, so it never reaches {tokens}")
        if tokens <= 0:
            return 0
        index = bisect_right(self._before, tokens - 1, key=lambda progress: progress.tokens) - 1
        run = self.runs[index]
        return run.first_step + -(-(tokens - self._before[index].tokens) // (run.rows * run.seq_len))

    @property
    def tokens_trained(self) -> int:
        """Labels trained over the whole run."""
        return self._before[-1].tokens

    @property
    def tokens_discarded(self) -> int:
        """Labels of the samples read that truncation cut off, over the whole run."""
        return self._before[-1].samples * self.full_length - self.tokens_trained

    def to_json(self) -> dict[str, object]:
        """Return a JSON object that `from_json` reads back; a run is [first_step, seq_len, rows]."""
        return {
            "total_steps": self.total_steps,
            "full_length": self.full_length,
            "runs": [list(run) for run in self.runs],
        }

    @classmethod
    def from_json(cls, data: object) -> Plan:
        """Read what `to_json` wrote; anything else raises ConfigError naming the field."""
        names = {"total_steps", "full_length", "runs"}
        if not isinstance(data, Mapping) or set(data) != names:
            raise ConfigError(f"plan must be an object with the fields {', '.join(sorted(names))}")
        if not isinstance(data["runs"], list):
            raise ConfigError(f"plan.runs must be a list, but is {data['runs']!r:.80}")
        runs = []
        for index, entry in enumerate(data["runs"]):
            if not isinstance(entry, list) or len(entry) != len(Run._fields):
                fields = ", ".join(Run._fields)
                raise ConfigError(f"plan.runs[{index}] must be [{fields}], but is {entry!r:.80}")
            runs.append(Run(*entry))
        return cls(tuple(runs), data["total_steps"], data["full_length"])


def _check(runs: tuple[Run, ...], total_steps: int, full_length: int) -> None:
    whole_number(total_steps, "plan.total_steps", least=1)
    whole_number(full_length, "plan.full_length", least=1)
    if not runs:
        raise ConfigError("plan.runs is empty, but must say what the first step is")
    least = 0
    for index, run in enumerate(runs):
        for name, value in zip(Run._fields, run, strict=True):
            whole_number(value, f"plan.runs[{index}].{name}", least=0 if name == "first_step" else 1)
        if run.seq_len > full_length:
            raise ConfigError(
                f"plan.runs[{index}].seq_len {run.seq_len} is longer than the full length {full_length}: "
                f"lower the curriculum's lengths, or raise model.seq_length"
            )
        if index == 0 and run.first_step != 0:
            raise ConfigError(f"plan.runs[0].first_step is {run.first_step}, but a plan begins with step 0")
        if run.first_step < least:
            raise ConfigError(
                f"plan.runs[{index}].first_step is {run.first_step}, but must be at least {least}"
            )
        if run.first_step >= total_steps:
            raise ConfigError(
                f"plan.runs[{index}].first_step is {run.first_step}, but total_steps is {total_steps}"
            )
        least = run.first_step + 1


def compile_plan(config: RunConfig) -> Plan:
    """Compile the schedule of a run: `train_batch_size` rows a step, lengths as the curriculum has them.

    The run ends after `training.train_steps`, or with the first step that brings the trained tokens to
    `training.train_tokens`. Takes milliseconds whatever the number of steps.

    Raises:
        ConfigError: neither or both of these are set, or a length exceeds model.seq_length.
    """
    target_steps, target_tokens = config.training.train_steps, config.training.train_tokens
    if (target_steps is None) == (target_tokens is None):
        raise ConfigError(
            f"exactly one of training.train_tokens ({target_tokens}) and training.train_steps "
            f"({target_steps}) says when to stop: set one"
        )
    full, rows = config.model.seq_length, config.train_batch_size
    runs: list[Run] = []
    step = tokens = 0
    while True:
        length = seq_len_at(config.curriculum, full, step + 1)
        runs.append(Run(step, length, rows))
        # Where the run would end if the length stayed as it is: no change has to be looked for beyond.
        if target_tokens is not None:
            end = step + -(-(target_tokens - tokens) // (rows * length))
        else:
            assert target_steps is not None, "one of the two targets is set: checked above"
            end = target_steps
        change = next_change(config.curriculum, full, step + 1, end + 1) - 1
        if change >= end:
            return Plan(tuple(runs), end, full)
        tokens += (change - step) * rows * length
        step = change
