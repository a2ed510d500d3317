"""The length plan: a whole schedule compiled, before the first step, into a short table that everybody reads.

The table is run-length coded, [(first_step, seq_len, rows)], with exact integer prefix sums of rows, samples and
tokens (the ledger's, by the mode), so any step of a run of any length is found by bisection. Trainer, loader, learning
rate, dry run and resume read this one table; nothing else decides a length or counts a token. `compile.py` makes it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from megatron_slw.config.errors import ConfigError, listing
from megatron_slw.progress import INT64_MAX, Progress, whole_number
from megatron_slw.slw.ledger import MODES, Ledger
from megatron_slw.slw.slices import OneEach, Slices, one_each


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
    """Samples drawn from the data."""
    tokens_before: int
    ledger: Ledger | None = field(default=None, repr=False, compare=False)
    """What the rows are made of; None: a sample each, the next ones, cut to the length."""
    first_row: int = field(default=0, compare=False)
    """Of the step, in the ledger."""

    @property
    def tokens(self) -> int:
        """Labels this step trains: fewer than its positions where labels are masked or rows are padding."""
        if self.ledger is None:
            return self.rows * self.seq_len
        return self.ledger.labels_before(self.first_row + self.rows) - self.tokens_before

    @property
    def after(self) -> Progress:
        """The progress once this step is done."""
        samples = self.samples_before + self.rows
        if self.ledger is not None:
            samples = self.ledger.samples_before(self.first_row + self.rows)
        return Progress(self.step + 1, samples, self.tokens_before + self.tokens)

    def slices(self, first: int, count: int) -> Slices:
        """What the rows [first, first + count) of this step are made of."""
        if self.ledger is None:
            return one_each(OneEach(self.samples_before, self.seq_len, 0, 0, fresh=True), first, count, 0)
        return self.ledger.slices(self.first_row + first, count)


@dataclass(frozen=True)
class Plan:
    """The shape of every step of a run.

    Args:
        runs: in order.
        total_steps: of the whole run.
        full_length: N, the labels of a sample.
        mode: what becomes of the labels that short steps cut off; see `ledger`.
        samples: how many are drawn at most; None for no end.

    Raises:
        ConfigError: the table is not a valid plan (naming the field).
    """

    runs: tuple[Run, ...]
    total_steps: int
    full_length: int
    mode: str = "seqlen_truncate"
    samples: int | None = None
    _first_steps: list[int] = field(init=False, repr=False, compare=False)
    _first_rows: list[int] = field(init=False, repr=False, compare=False)
    _ledger: Ledger = field(init=False, repr=False, compare=False)
    _before: list[Progress] = field(init=False, repr=False, compare=False)
    """Progress at the start of each run, then at the end of the last: one entry more than runs."""

    def __post_init__(self) -> None:
        _check(self)
        first_steps = [run.first_step for run in self.runs]
        ledger, first_rows, before = Ledger(self.mode, self.full_length, self.samples), [], [Progress()]
        for run, end in zip(self.runs, [*first_steps[1:], self.total_steps], strict=True):
            first_rows.append(ledger.rows)
            ledger.extend((end - run.first_step) * run.rows, run.seq_len)
            before.append(Progress(end, ledger.samples, ledger.labels))
        if ledger.rows * self.full_length > INT64_MAX:
            raise ConfigError(f"plan reads {ledger.rows} rows of {self.full_length} tokens: no 64-bit count")
        object.__setattr__(self, "_first_steps", first_steps)
        object.__setattr__(self, "_first_rows", first_rows)
        object.__setattr__(self, "_ledger", ledger)
        object.__setattr__(self, "_before", before)

    def at(self, step: int) -> BatchStep:
        """Return the step of this 0-based index; IndexError outside [0, total_steps)."""
        if not 0 <= step < self.total_steps:
            raise IndexError(f"step {step} is not in the plan: it has steps 0 to {self.total_steps - 1}")
        index = bisect_right(self._first_steps, step) - 1
        run, ledger = self.runs[index], self._ledger
        row = self._first_rows[index] + (step - run.first_step) * run.rows
        before = ledger.samples_before(row), ledger.labels_before(row)
        return BatchStep(step, run.seq_len, run.rows, *before, ledger=ledger, first_row=row)

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
        row = self._ledger.rows_to_labels(tokens)
        index = bisect_right(self._first_rows, row - 1) - 1
        run = self.runs[index]
        return run.first_step + -(-(row - self._first_rows[index]) // run.rows)

    @property
    def tokens_trained(self) -> int:
        """Labels trained over the whole run."""
        return self._before[-1].tokens

    @property
    def tokens_discarded(self) -> int:
        """Labels of the samples drawn that the run never trains."""
        return self._ledger.untrained_before(self._ledger.rows)

    @property
    def tokens_repeated(self) -> int:
        """Labels that the run trains for a second time (seqlen_revisit)."""
        return self._ledger.repeated

    def tokens_untrained_at(self, step: int) -> int:
        """Labels of the samples drawn in the first `step` steps that these did not train: cut off, or to come back."""
        end = step == self.total_steps
        return self._ledger.untrained_before(self._ledger.rows if end else self.at(step).first_row)

    def to_json(self) -> dict[str, object]:
        """Return a JSON object that `from_json` reads back; a run is [first_step, seq_len, rows]."""
        return {
            "total_steps": self.total_steps,
            "full_length": self.full_length,
            "mode": self.mode,
            "samples": self.samples,
            "runs": [list(run) for run in self.runs],
        }

    @classmethod
    def from_json(cls, data: object) -> Plan:
        """Read what `to_json` wrote; anything else raises ConfigError naming the field."""
        names = {"total_steps", "full_length", "mode", "samples", "runs"}
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
        return cls(tuple(runs), data["total_steps"], data["full_length"], data["mode"], data["samples"])


def _check(plan: Plan) -> None:
    runs, total_steps, full_length = plan.runs, plan.total_steps, plan.full_length
    whole_number(total_steps, "plan.total_steps", least=1)
    whole_number(full_length, "plan.full_length", least=1)
    if plan.mode not in MODES:
        raise ConfigError(f"plan.mode must be {listing(MODES)}, but is {plan.mode!r:.80}")
    if plan.samples is not None:
        whole_number(plan.samples, "plan.samples", least=1)
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
            raise ConfigError(f"plan.runs[{index}].first_step is {run.first_step}, but must be at least {least}")
        if run.first_step >= total_steps:
            raise ConfigError(f"plan.runs[{index}].first_step is {run.first_step}, but total_steps is {total_steps}")
        least = run.first_step + 1
