"""The page's title: in one sentence, what came out."""

from __future__ import annotations

import math

from megatron_slw.config.errors import listing
from megatron_slw.report.comparison import Reached
from megatron_slw.report.series import Run
from megatron_slw.report.table import NO_BREAK, Comparison, best_loss, clock_text

_TOKENS, _TIME = 1, 3


def finding(comparison: Comparison) -> str:
    """Which run reached the target at the least tokens and what it saved beside the first, or that none did."""
    runs, target, base = comparison.runs, comparison.target, comparison.reached[0]
    if not any(run.evaluations for run in runs):
        return f"{listing([run.name for run in runs], 'and')}: no validation loss to compare"
    if target is None:
        return f"{runs[0].name} has no validation loss to compare with"
    if len(runs) == 1:
        return _alone(runs[0], base, target, comparison.target_given)
    goal = f"validation loss {target:.3f}"
    if not comparison.target_given:
        goal = f"{runs[0].name}’s best {goal}"
    others = [(r, run) for r, run in zip(comparison.reached[1:], runs[1:], strict=True) if r is not None]
    if others:
        winner, run = min(others, key=lambda pair: pair[0].position[_TOKENS])
        return f"{run.name} reached {goal} {_cost(winner) if base is None else _beside(winner, base)}"
    losses = [(loss, run.name) for run in runs[1:] if (loss := best_loss(run)) is not None]
    nearest = f": {min(losses)[1]} came closest with {min(losses)[0]:.3f}" if losses else ""
    nobody = "No run" if base is None else "No other run" if not comparison.target_given else f"Only {runs[0].name}"
    return f"{nobody} reached {goal}{nearest}"


def _alone(run: Run, reached: Reached | None, target: float, given: bool) -> str:
    if given and reached is not None:
        return f"{run.name} reached validation loss {target:.3f} {_cost(reached)}"
    cost = f"{clock_text('step', run.end[0])} steps and {clock_text('tokens', run.end[_TOKENS])} tokens"
    missed = f"; {target:.3f} was not reached" if given else ""
    return f"{run.name}: validation loss {run.evaluations[-1][1]:.3f} after {cost}{missed}"


def _cost(reached: Reached) -> str:
    tokens, time = (clock_text(c, reached.position[i]) for c, i in (("tokens", _TOKENS), ("time", _TIME)))
    return f"after {tokens} tokens and {time} of training"


def _beside(winner: Reached, base: Reached) -> str:
    """with 38 % fewer tokens and 52 % less time."""
    parts = []
    for i, fewer, more in ((_TOKENS, "fewer tokens", "more tokens"), (_TIME, "less time", "more time")):
        if base.position[i] > 0 and math.isfinite(winner.position[i]):
            change = round(100 * (winner.position[i] / base.position[i] - 1))
            parts.append((change > 0, f"{abs(change)}{NO_BREAK}% {more if change > 0 else fewer}"))
    if not parts:
        return _cost(winner)
    word = " and " if len({worse for worse, _ in parts}) == 1 else " but "
    return f"with {word.join(text for _, text in parts)}"
