"""The lightweight tuning of sequence-length warmup: which short probe runs to make, and what they decide.

After arXiv 2108.06084, section 4: first the start length, at a duration of a few learning-rate warmups: the shortest
that keeps the validation perplexity of the first steps from fluctuating. Then a binary search of the longest duration
that keeps it so. A perplexity above 1.3 times the best so far is a fluctuation.

The search is a function of the results so far, so a tuner that was killed has nothing else to remember.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

LIMIT = 1.3


class Probe(NamedTuple):
    """A schedule to try: the whole run's, of which the first steps are trained."""

    min_difficulty: int
    """Start length in tokens."""
    total_curriculum_step: int
    """Duration in steps."""


@dataclass(frozen=True)
class Space:
    """What is searched.

    Args:
        starts: start lengths, ascending.
        durations: of each start, ascending; the first is equal for all, and the start length is sought at it.
    """

    starts: tuple[int, ...]
    durations: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        rows = [self.starts, *self.durations]
        ascending = all(row and all(a < b for a, b in zip(row, row[1:], strict=False)) for row in rows)
        if not ascending or len(self.durations) != len(self.starts) or len({row[0] for row in self.durations}) != 1:
            raise ValueError(f"no search space: starts {self.starts}, durations {self.durations}")


@dataclass(frozen=True)
class Choice:
    """The end of a search."""

    probe: Probe | None
    """One that was tried and did not fluctuate; None where no start length was stable."""
    shorter: Probe | None
    """The nearest shorter start, which fluctuated; None where the first is chosen."""
    longer: Probe | None
    """The nearest longer duration, which fluctuated; None where the last is chosen."""


@dataclass(frozen=True)
class Fluctuation:
    """How much a series of validation losses rose."""

    worst_ratio: float
    """Largest perplexity over the best before it, up to the first above the limit; infinite where a loss was not
    finite; 1 where it only fell."""
    worst_step: int | None
    """Where that was."""
    significant: bool
    """Above the limit."""


def fluctuation(losses: Iterable[tuple[int, float | None]], limit: float = LIMIT) -> Fluctuation:
    """Judge (step, validation loss in nats) in order; a loss that is None or not finite is a divergence.

    Nothing after the first significant rise is looked at, so a probe that is stopped there has the result of one that
    went on.
    """
    best, worst, where = math.inf, 1.0, None
    for step, loss in losses:
        if loss is None or not math.isfinite(loss):
            return Fluctuation(math.inf, step, True)
        ratio = math.exp(min(loss - best, 700.0)) if best < math.inf else 1.0  # exp(710) overflows
        best = min(best, loss)
        if ratio > worst:
            worst, where = ratio, step
        if ratio > limit:
            return Fluctuation(ratio, step, True)
    return Fluctuation(worst, where, False)


def next_move(space: Space, stable: Mapping[Probe, bool]) -> Probe | Choice:
    """The probe to make next, or the choice.

    Whatever was found, a choice was tried and was stable. Where stability is monotone (stable from some start length
    on, and up to some duration) it is the shortest start and with it the longest duration of the space.

    Args:
        space: what is searched.
        stable: the results so far; those of probes that the search does not ask for are ignored.
    """
    search = _search(space)
    try:
        probe = next(search)
        while probe in stable:
            probe = search.send(stable[probe])
    except StopIteration as end:
        choice: Choice = end.value
        return choice
    return probe


def paths(space: Space, stable: Mapping[Probe, bool] | None = None) -> Iterator[tuple[Probe, ...]]:
    """Every sequence of probes that may still be made after these results, one for each way they can turn out."""
    results = dict(stable or {})
    move = next_move(space, results)
    if isinstance(move, Choice):
        yield ()
        return
    for outcome in (True, False):
        for rest in paths(space, {**results, move: outcome}):
            yield (move, *rest)


def smoothest_path(space: Space) -> tuple[Probe, ...]:
    """The probes that are made if none fluctuates."""
    return next(paths(space))


def _search(space: Space) -> Generator[Probe, bool, Choice]:
    """Yields probes and is sent whether they were stable.

    The shortest start is tried first, because it is most often right; the others are bisected.
    """
    starts = space.starts
    first = space.durations[0][0]
    low, high, middle = 0, len(starts), 0  # the answer's index is in [low, high]; high: none is stable
    while low < high:
        if (yield Probe(starts[middle], first)):
            high = middle
        else:
            low = middle + 1
        middle = (low + high - 1) // 2  # of two middles the shorter, which costs less
    shorter = Probe(starts[low - 1], first) if low else None
    if low == len(starts):
        return Choice(None, shorter, None)
    start, durations = starts[low], space.durations[low]
    good, bad = 0, len(durations)
    while bad - good > 1:
        middle = (good + bad) // 2
        if (yield Probe(start, durations[middle])):
            good = middle
        else:
            bad = middle
    longer = Probe(start, durations[bad]) if bad < len(durations) else None
    return Choice(Probe(start, durations[good]), shorter, longer)
