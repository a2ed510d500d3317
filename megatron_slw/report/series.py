"""Reading a run directory for a comparison: metrics.jsonl in one pass, and what the evaluations found."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_slw.config.errors import ConfigError, show
from megatron_slw.config.json_file import read_json
from megatron_slw.report.buckets import Buckets, Reduced
from megatron_slw.report.comparison import Correlation, Pearson
from megatron_slw.report.smoothing import Floats
from megatron_slw.slw.stability import RATIO_LIMIT
from megatron_slw.train.metrics import COUNTS, FILE_NAME, Record, stream_metrics

CLOCKS = ("step", "tokens", "flops", "time")
MEASURES = ("loss", "seq_len", "grad_norm", "loss_ratio", "variance_sqrt_l1", "variance_sqrt_abs_max")
CORRELATED = ("variance_sqrt_l1", "variance_sqrt_abs_max")
"""With loss_ratio."""
MAX_MARKS = 20
"""Of a run that are drawn; one that was resumed more often is counted, not drawn, from there on."""
MAX_EVALUATIONS = 100_000
"""They are kept one by one, unlike the steps."""
LARGEST = 1e100
"""No number of a run comes near it, and its square still is one."""
_MAX_SCORES = 40
_NOT_SCORES = ("step", "tokens", "flops", "val_loss", "resumed")

Position = tuple[float, float, float, float]
"""On the CLOCKS: steps, tokens, FLOPs, seconds; nan on one that is not known."""


@dataclass(frozen=True)
class Mark:
    """Something that happened to the run between two steps."""

    position: Position
    text: str
    """resumed, or: grown from NAME."""


@dataclass(frozen=True)
class Run:
    """One run as the page shows it."""

    name: str
    reduced: Reduced
    """Columns: CLOCKS, then MEASURES."""
    first_step: int
    """More than 1 where the file goes on from another run's checkpoint."""
    end: Position
    evaluations: tuple[tuple[Position, float], ...]
    """Position and loss of each evaluation whose loss was finite."""
    marks: tuple[Mark, ...]
    resumes: int
    discarded: float | None
    """Tokens of the samples read that were not trained."""
    spikes: int | None
    """Steps with a loss ratio above RATIO_LIMIT; None where no ratio was recorded."""
    spike_score: float | None
    correlations: Mapping[str, Pearson | None]
    """Of loss_ratio with each of CORRELATED."""
    scores: Mapping[str, float]

    def clock(self, name: str) -> Floats | None:
        """Where each interval ends, shape (intervals,); None where not every step has it."""
        column = CLOCKS.index(name)
        if self.reduced.count[:, column].sum() < self.reduced.count[:, 0].sum():
            return None
        return self.reduced.high[:, column]

    def has(self, measure: str) -> bool:
        """Whether any step has a value of it."""
        return bool(self.reduced.count[:, _column(measure)].any())

    def low(self, measure: str) -> Floats:
        """The least value of each interval."""
        return self.reduced.low[:, _column(measure)]

    def high(self, measure: str) -> Floats:
        """The greatest value of each interval."""
        return self.reduced.high[:, _column(measure)]

    def mean(self, measure: str) -> Floats:
        """The mean of each interval."""
        return self.reduced.mean[:, _column(measure)]

    def counts(self, measure: str) -> Floats:
        """The number of values in each interval."""
        return self.reduced.count[:, _column(measure)]


def read_run(name: str, folder: str | Path, on_bytes: Callable[[int], None] | None = None) -> Run:
    """Read the run in the directory `folder`, in one pass over its metrics.jsonl.

    Evaluation results are the *.json of its folder `evaluation`, one object each, as tools/evaluate.py --json
    prints it: its numbers are scores, named after the file. A number in an object one level down is a score of
    that object's name.

    Args:
        name: of the run, on the page.
        folder: its logging.directory.
        on_bytes: called with the length of each line that was read.

    Raises:
        ConfigError: a file is missing or damaged, or there is no step yet.
    """
    path = Path(folder) / FILE_NAME
    reader = _Reader()
    try:
        for number, record in stream_metrics(path, on_bytes, scores=True):
            try:
                reader.take(record)
            except ConfigError as error:
                raise ConfigError(f"{path}: line {number}: {error}") from None
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist: give the run directory, as in logging.directory") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    if not reader.buckets.rows:
        raise ConfigError(f"{path} has no step yet: draw it once the run has trained one")
    return reader.run(name, _read_scores(Path(folder) / "evaluation"))


class _Reader:
    """What one pass over the records gathers."""

    def __init__(self) -> None:
        self.buckets = Buckets(len(CLOCKS) + len(MEASURES))
        self.first_step = 0.0
        self._now: Position = (0.0, 0.0, 0.0, 0.0)
        self._evaluations: list[tuple[Position, float]] = []
        self._marks: list[Mark] = []
        self._resumes = 0
        self._ratios = self._spikes = 0
        self._last: dict[str, float | None] = {"tokens_discarded": None, "spike_score": None}
        self._correlations = {name: Correlation() for name in CORRELATED}
        self._task_scores: dict[str, float] = {}

    def take(self, record: Record) -> None:
        """Take the next record of the file."""
        if "scores" in record:
            self._take_scores(record["scores"])
            return
        evaluated = "val_loss" in record
        seconds = 0.0 if evaluated else number_in(record, "step_time_s")
        tokens, flops = number_in(record, "tokens"), number_in(record, "flops")
        flops = self._now[2] if evaluated and math.isnan(flops) else flops
        now = (number_in(record, "step"), tokens, flops, self._now[3] + seconds)
        for clock, before, after in zip(CLOCKS[:3], self._now, now, strict=False):
            if after < before or (clock == "step" and after == before and not evaluated):
                raise ConfigError(f"{clock} is {after:,.0f} after {before:,.0f}: is this the file of two runs?")
        if evaluated:
            self._evaluate(record, now)
        else:
            self._step(record, now)
            self._now = now

    def _take_scores(self, scores: Any) -> None:
        """What tasks gave; each keeps its last figures."""
        if not isinstance(scores, Mapping):
            raise ConfigError(f"scores must be an object, not {show(scores)}")
        self._task_scores |= _scores(scores)
        if len(self._task_scores) > _MAX_SCORES:
            raise ConfigError(f"at most {_MAX_SCORES} scores of tasks are shown: leave some out")

    def _evaluate(self, record: Record, now: Position) -> None:
        loss = number_in(record, "val_loss")
        if math.isfinite(loss):
            if len(self._evaluations) == MAX_EVALUATIONS:
                raise ConfigError(f"a page takes at most {MAX_EVALUATIONS:,} evaluations of a run: leave lines out")
            self._evaluations.append((now, loss))
        tasks = {name: value for name, value in record.items() if name not in _NOT_SCORES}
        self._task_scores = _scores(tasks) or self._task_scores

    def _step(self, record: Record, now: Position) -> None:
        values = {name: number_in(record, name) for name in MEASURES}
        if not self.buckets.rows:
            self.first_step = now[0]
        self.buckets.add((*now, *values.values()))
        ratio = values["loss_ratio"]
        if math.isfinite(ratio):
            self._ratios += 1
            self._spikes += ratio > RATIO_LIMIT
        for name, correlation in self._correlations.items():
            correlation.add(ratio, values[name])
        for name in self._last:
            value = number_in(record, name)
            if math.isfinite(value):
                self._last[name] = value
        if record.get("resumed") is True:
            self._resumes += 1
            self._mark("resumed", now)
        if "grown_from" in record:
            self._mark(f"grown from {str(record['grown_from'])[:80]}", now)

    def _mark(self, text: str, now: Position) -> None:
        """Between the step before and this one; at this one where the file begins in the middle of a run."""
        if len(self._marks) < MAX_MARKS:
            self._marks.append(Mark(self._now if self.buckets.rows > 1 else now, text))

    def run(self, name: str, scores: Mapping[str, float]) -> Run:
        """Everything gathered."""
        return Run(
            name=name,
            reduced=self.buckets.reduced(),
            first_step=int(self.first_step),
            end=self._now,
            evaluations=tuple(self._evaluations),
            marks=tuple(self._marks),
            resumes=self._resumes,
            discarded=self._last["tokens_discarded"],
            spikes=self._spikes if self._ratios else None,
            spike_score=self._last["spike_score"],
            correlations={name: c.result() for name, c in self._correlations.items()},
            scores={**self._task_scores, **scores},
        )


def number_in(record: Mapping[str, Any], name: str) -> float:
    """The number of that name; nan where it is missing, null or not finite.

    Raises:
        ConfigError: it is something else.
    """
    value = record.get(name)
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{name} must be a number, not {show(value)}")
    if isinstance(value, float) and not math.isfinite(value):
        return math.nan
    if not -LARGEST < value < LARGEST:
        raise ConfigError(f"{name} is too large a number")
    return float(value)


def _column(measure: str) -> int:
    return len(CLOCKS) + MEASURES.index(measure)


def _read_scores(folder: Path) -> dict[str, float]:
    """The scores in the files of `folder`, by file name; none where there is no such folder."""
    found: dict[str, float] = {}
    for path in sorted(folder.glob("*.json")):
        try:
            scores = _scores(read_json(path))
        except ConfigError as error:
            raise ConfigError(f"{path}: {error} Make it again, or take it out.") from None
        found |= {f"{path.stem} {name}": value for name, value in scores.items()}
    if len(found) > _MAX_SCORES:
        raise ConfigError(f"{folder} has {len(found)} scores, at most {_MAX_SCORES} are shown: take files out")
    return found


def _scores(content: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of an object and of the objects in it, but for counts."""
    found: dict[str, float] = {}
    for name, value in content.items():
        inner = value if isinstance(value, Mapping) else {name: value}
        for key, number in inner.items():
            if isinstance(number, int | float) and not isinstance(number, bool) and key not in COUNTS:
                found[name if inner is not value else f"{name} {key}"] = number_in(inner, key)
    return found
