"""Steps of the plan that were left out: which, why, and what that does to the count of trained labels.

The plan stays what it is. The clock goes through a step that is left out like through any other, so lengths, learning
rates, data and random numbers of all other steps are those of a run without the fault. Only the labels are not trained:
`trained` takes them off.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

import numpy as np

from megatron_slw.config.errors import ConfigError
from megatron_slw.progress import Progress, whole_number
from megatron_slw.slw.plan import BatchStep, Plan

MAX_REASON = 400
MAX_SKIPS = 10_000


@dataclass(frozen=True)
class Skip:
    """One fault, and the steps that were left out for it. All steps are 0-based."""

    first: int
    stop: int
    """The first step that is trained again."""
    step: int
    """The one that was refused."""
    reason: str
    loss: float | None
    """None: not finite."""
    grad_norm: float | None
    """None: not finite, or not known."""
    back_to: int | None = None
    """The steps of the checkpoint that training went back to; None where it simply went on."""

    def __contains__(self, step: int) -> bool:
        return self.first <= step < self.stop


@dataclass(frozen=True)
class Skipped:
    """All of a run, in the order of the decisions. The loop replaces it, the checkpoint stores it."""

    skips: tuple[Skip, ...] = ()

    def with_skip(self, skip: Skip) -> Skipped:
        """With one more."""
        return Skipped((*self.skips, skip))

    def joined(self, others: Iterable[Skip]) -> Skipped:
        """With those of `others` that are not in it yet."""
        return Skipped((*self.skips, *(skip for skip in others if skip not in self.skips)))

    def at(self, step: int) -> Skip | None:
        """What leaves a step out; None for a step that is trained."""
        return next((skip for skip in self.skips if step in skip), None)

    def stretches(self, before: int) -> list[tuple[int, int]]:
        """[first, stop) of the steps left out below `before`, in order and apart from each other."""
        found: list[tuple[int, int]] = []
        for skip in sorted(self.skips, key=lambda skip: skip.first):
            first = max(skip.first, found[-1][1] if found else 0)
            stop = min(skip.stop, before)
            if first < stop:
                found.append((first, stop))
        return found

    def steps_before(self, step: int) -> int:
        """How many of the first `step` steps are left out."""
        return sum(stop - first for first, stop in self.stretches(step))

    def faults_since(self, step: int) -> int:
        """How many faults there were at this step or later ones."""
        return sum(skip.step >= step for skip in self.skips)

    def trained(self, plan: Plan, progress: Progress) -> Progress:
        """`progress`, a position in the plan, with the labels in `tokens` that were really trained."""
        lost = 0
        for first, stop in self.stretches(progress.step):
            lost += plan.progress_at(stop).tokens - plan.progress_at(first).tokens
        return replace(progress, tokens=progress.tokens - lost)

    def to_json(self) -> list[dict[str, object]]:
        """Return a JSON list that `from_json` reads back, bit for bit."""
        return [{field.name: getattr(skip, field.name) for field in fields(Skip)} for skip in self.skips]

    @classmethod
    def from_json(cls, data: object) -> Skipped:
        """Read what `to_json` wrote; anything else raises ConfigError naming the field."""
        if not isinstance(data, list) or len(data) > MAX_SKIPS:
            raise ConfigError(f"skipped must be a list of at most {MAX_SKIPS} objects, but is {data!r:.80}")
        return cls(tuple(_skip(entry, f"skipped[{i}]") for i, entry in enumerate(data)))


def sample_ranges(step: BatchStep) -> list[list[int]]:
    """The ids of the samples of a step, as [first, stop) stretches in order."""
    ids = np.unique(step.slices(0, step.rows).sample)
    ends = np.flatnonzero(np.diff(ids) != 1) + 1
    return [[int(part[0]), int(part[-1]) + 1] for part in np.split(ids, ends) if len(part)]


def finite(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if math.isfinite(value) else None


def _skip(entry: object, where: str) -> Skip:
    names = [field.name for field in fields(Skip)]
    if not isinstance(entry, dict) or set(entry) != set(names):
        raise ConfigError(f"{where} must be an object with the fields {', '.join(names)}, but is {entry!r:.80}")
    first = whole_number(entry["first"], f"{where}.first")
    stop = whole_number(entry["stop"], f"{where}.stop", least=first + 1)
    step = whole_number(entry["step"], f"{where}.step")
    if not first <= step < stop:
        raise ConfigError(f"{where}.step is {step}, which does not lie in {first} to {stop - 1}")
    reason = entry["reason"]
    if not isinstance(reason, str) or len(reason) > MAX_REASON:
        raise ConfigError(f"{where}.reason must be a sentence, but is {reason!r:.80}")
    back_to = entry["back_to"]
    if back_to is not None and whole_number(back_to, f"{where}.back_to") > first:
        raise ConfigError(f"{where}.back_to is {back_to}, but must not be after first {first}")
    loss, norm = (_number(entry[name], f"{where}.{name}") for name in ("loss", "grad_norm"))
    return Skip(first, stop, step, reason, loss, norm, back_to)


def _number(value: object, field: str) -> float | None:
    if value is None:
        return None
    if type(value) not in (int, float) or not math.isfinite(value):  # type: ignore[arg-type]
        raise ConfigError(f"{field} must be a finite number or null, but is {value!r:.80}")
    return float(value)  # type: ignore[arg-type]
