"""What each rank tells the others of itself, and what follows from it: who stands still, who is slow, who is gone.

Pure functions on plain values; `watch.py` takes the samples and carries them between the ranks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median

MAX_TEXT = 300
LEAD, ALONE = 0.4, 0.2
"""A straggler works so much more of the time than half of the others do, and so much more than any of them."""
MAX_LINES = 16


@dataclass(frozen=True)
class Beat:
    """One sign of life of a rank."""

    count: int
    """Beats so far; one that no longer grows is a rank that no longer lives."""
    where: str
    """What the training loop was at, like "step 12"."""
    moves: int
    """How often the loop has moved on to something else."""
    place: str
    """The line of the program the main thread was in."""
    working: float
    """Share of the samples of the last window in which the main thread was not waiting for other ranks, 0 to 1."""
    window_s: float
    """How long that window was."""
    waits: bool = False
    """Whether it was waiting for other ranks just now."""
    failed: str = ""
    """Why the rank ends; empty while it goes on."""

    def to_json(self) -> str:
        """As it is stored, long texts cut."""
        return json.dumps({k: v[:MAX_TEXT] if isinstance(v, str) else v for k, v in asdict(self).items()})

    @classmethod
    def from_json(cls, text: bytes | str) -> Beat:
        """Read what `to_json` wrote."""
        return cls(**json.loads(text))


@dataclass(frozen=True)
class Seen:
    """A rank's last beat, and since when two things about it have not changed."""

    beat: Beat
    silent_s: float
    """Seconds since a beat came."""
    standing_s: float
    """Seconds since the loop of that rank moved on."""


def update(
    seen: Mapping[int, tuple[Beat, float, float]], rank: int, beat: Beat, now: float
) -> tuple[Beat, float, float]:
    """(beat, when it came, when its rank last moved on) after one more look at a rank, by this process's clock."""
    before = seen.get(rank)
    if before is None:
        return beat, now, now
    old, came, moved = before
    return beat, now if beat.count != old.count else came, now if beat.moves != old.moves else moved


def stalled(ranks: Mapping[int, Seen], timeout_s: float) -> bool:
    """Whether some rank has not moved on for `timeout_s`, dead or alive.

    A start may take long (imports, data, the checkpoint): only silence counts there, and collectives have a limit of
    their own.
    """
    standing = [seen.standing_s for seen in ranks.values() if seen.beat.moves]
    return max([*standing, *(seen.silent_s for seen in ranks.values())], default=0.0) > timeout_s


def culprits(ranks: Mapping[int, Seen], silent_s: float) -> tuple[list[int], str]:
    """The ranks that keep the others from going on, and what is the matter with them.

    Args:
        ranks: what is known of every rank.
        silent_s: seconds without a beat after which a rank counts as stopped or gone.
    """
    silent = [rank for rank, seen in ranks.items() if seen.silent_s > silent_s and not seen.beat.failed]
    if silent:
        return silent, "gave no sign of life (stopped, killed, or its machine is gone)"
    failed = [rank for rank, seen in ranks.items() if seen.beat.failed]
    if failed:
        return failed, "failed"
    behind = min(seen.beat.moves for seen in ranks.values())
    late = [rank for rank, seen in ranks.items() if seen.beat.moves == behind]
    if len(late) < len(ranks):
        return late, "did not come as far as the others"
    busy = [rank for rank, seen in ranks.items() if not seen.beat.waits]
    if len(busy) == len(ranks):
        return busy, "all work, so the time-out may be too short"
    if busy:
        return busy, "did not come to where the others wait for them"
    return list(ranks), "wait for each other"


def straggler(beats: Mapping[int, Beat]) -> int | None:
    """The rank that works while the others wait for it; None where no single one does.

    By how much more it works, not by how much: where steps are short, communication takes its share on every rank, and
    a sample that falls into it looks like waiting.
    """
    if len(beats) < 2:
        return None
    rank = max(beats, key=lambda rank: beats[rank].working)
    others = [beat.working for other, beat in beats.items() if other != rank]
    working = beats[rank].working
    return rank if working >= median(others) + LEAD and working >= max(others) + ALONE else None


def names(ranks: Sequence[int]) -> str:
    """Like "rank 3" or "ranks 3, 4 and 12 more"."""
    shown = ", ".join(str(rank) for rank in ranks[:8])
    more = f" and {len(ranks) - 8} more" if len(ranks) > 8 else ""
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}{more}"


def table(ranks: Mapping[int, Seen], silent_s: float) -> list[str]:
    """Where each rank stood; ranks in one place share a line."""
    places: dict[str, list[int]] = {}
    for rank, seen in sorted(ranks.items()):
        beat = seen.beat
        state = f"{'waiting' if beat.waits else 'working'}, {beat.place}"
        if beat.failed:
            state = beat.failed
        elif seen.silent_s > silent_s:
            state = f"last seen {seen.silent_s:.0f} s ago in {beat.place}"
        places.setdefault(f"{beat.where}, {state}", []).append(rank)
    lines = [f"  {names(at)}: {place}" for place, at in places.items()]
    return lines[:MAX_LINES] + ([f"  and {len(lines) - MAX_LINES} other places"] if len(lines) > MAX_LINES else [])
