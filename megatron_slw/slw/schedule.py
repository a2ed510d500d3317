"""How long the sequences of a step are: pure functions of the step.

Formulas, names and the clock are those of DeepSpeed 0.19.8 (runtime/data_pipeline/curriculum_scheduler.py),
so that a published configuration keeps its meaning: `t` counts from 1. What DeepSpeed gets wrong is not
repeated: its scheduler stops recomputing once it has seen the maximum (a list that starts there or goes
down freezes), and it divides by zero where the duration is 0 (here a ConfigError).

The same functions give the rows of a batch-size warmup: a "difficulty" is what grows.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

from megatron_slw.config.errors import ConfigError
from megatron_slw.config.schema import CurriculumConfig
from megatron_slw.slw.custom import custom_difficulty

GOLDEN_RATIO = (1 + math.sqrt(5)) / 2


class Decision(NamedTuple):
    """A loss_adaptive schedule has this length from `first_step` (0-based) on."""

    first_step: int
    seq_len: int


def difficulty_at(curriculum: CurriculumConfig | None, full: int, t: int) -> int:
    """Return the sequence length in tokens, or the rows, of the t-th step (1-based).

    Without a curriculum it is always `full`. A curriculum may end below `full`: its last length is its own
    `max_difficulty` (or last `difficulty`), also where that is no multiple of `difficulty_step`. It then
    comes a little after total_curriculum_step, as in DeepSpeed: when the ramp passes the next multiple.

    Args:
        curriculum: with its duration in steps (`resolve_schedules`); loss_adaptive as its `stages`.

    Raises:
        ValueError: t < 1.
        ConfigError: a setting that the schedule type needs is missing, or a custom function fails.
    """
    if t < 1:
        raise ValueError(f"schedule steps count from 1, but t is {t}")
    if curriculum is None:
        return full
    if curriculum.schedule_type == "fixed_discrete":
        difficulty, max_step = _discrete_lists(curriculum)
        return difficulty[bisect_left(max_step, t)]
    if curriculum.schedule_type == "custom":
        return custom_difficulty(curriculum, t)
    if curriculum.schedule_type == "mixed":
        return _mixed(curriculum, t)
    return _ramp(curriculum, t)


def next_change(curriculum: CurriculumConfig | None, full: int, t: int, end: int) -> int:
    """Return the first step after t whose difficulty differs from that of step t, or `end` if none below it does.

    Takes O(log end) evaluations, so a run of any number of steps compiles at once; a custom or mixed schedule knows
    no order and is walked.
    """
    if curriculum is None:
        return end
    if curriculum.schedule_type == "fixed_discrete":
        return _next_stage(curriculum, full, t, end)
    length = difficulty_at(curriculum, full, t)
    scattered = curriculum.schedule_type == "mixed" and t <= (curriculum.total_curriculum_step or 0)
    if scattered or curriculum.schedule_type == "custom":
        return next((step for step in range(t + 1, end) if difficulty_at(curriculum, full, step) != length), end)
    # The ramp never falls, so the change can be bracketed by doubling strides and then bisected.
    same, stride = t, 1
    while same + stride < end and _ramp(curriculum, same + stride) == length:
        same, stride = same + stride, 2 * stride
    differs = min(same + stride, end)
    while differs - same > 1:
        middle = (same + differs) // 2
        if _ramp(curriculum, middle) == length:
            same = middle
        else:
            differs = middle
    return differs


def distinct(curriculum: CurriculumConfig, quantum: int) -> int:
    """How many lengths a ramp of this curriculum has on a grid of multiples of `quantum`."""
    first = min(-(-curriculum.min_difficulty // quantum) * quantum, curriculum.max_difficulty)
    return 1 + -(-(curriculum.max_difficulty - first) // quantum)


def stages(curriculum: CurriculumConfig, decisions: Sequence[Decision]) -> CurriculumConfig:
    """A loss_adaptive schedule with the decisions it has taken, as the fixed_discrete one that repeats them."""
    first = min(_rounded(curriculum, curriculum.min_difficulty), curriculum.max_difficulty)
    changes = {
        "schedule_type": "fixed_discrete",
        "difficulty": (first, *(decision.seq_len for decision in decisions)),
        "max_step": tuple(decision.first_step for decision in decisions),
    }
    return curriculum.model_copy(update=changes)


def _next_stage(curriculum: CurriculumConfig, full: int, t: int, end: int) -> int:
    length = difficulty_at(curriculum, full, t)
    _, max_step = _discrete_lists(curriculum)
    for last in max_step[bisect_left(max_step, t) :]:
        if last + 1 >= end or difficulty_at(curriculum, full, last + 1) != length:
            return min(last + 1, end)
    return end


def _mixed(curriculum: CurriculumConfig, t: int) -> int:
    """The lengths of fixed_linear in a scattered order: a control that trains the same tokens in as many steps.

    Step t takes the place t * k mod T of the ramp, with k coprime to T and near T / golden ratio: every place once,
    and any stretch of steps has short, middle and long ones in proportion.
    """
    total = curriculum.total_curriculum_step
    if not total or t > total:
        return _ramp(curriculum, t)
    stride = round(total / GOLDEN_RATIO) or 1
    while math.gcd(stride, total) != 1:
        stride += 1
    return _ramp(curriculum, t * stride % total + 1)


def _ramp(curriculum: CurriculumConfig, t: int) -> int:
    """fixed_linear and fixed_root, in DeepSpeed's order of float operations: floor() shows the last bit."""
    low, high = curriculum.min_difficulty, curriculum.max_difficulty
    total, quantum = curriculum.total_curriculum_step, curriculum.difficulty_step
    degree = curriculum.root_degree if curriculum.schedule_type == "fixed_root" else 1
    if not total or not quantum or not degree:
        raise ConfigError(
            f"{curriculum.schedule_type} needs schedule_config.total_curriculum_step and difficulty_step"
            f"{' and root_degree' if curriculum.schedule_type == 'fixed_root' else ''}: set what is missing"
        )
    fraction: float = (float(t) / total) ** (1.0 / degree)
    return min(_rounded(curriculum, math.floor(fraction * (high - low) + low)), high)


def _rounded(curriculum: CurriculumConfig, length: int) -> int:
    """Down to a multiple of the quantum, but not below the start: min 8 with step 16 would give length 0."""
    quantum = curriculum.difficulty_step or 1
    return max(length - length % quantum, -(-curriculum.min_difficulty // quantum) * quantum)


def _discrete_lists(curriculum: CurriculumConfig) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return (difficulty, max_step) of fixed_discrete: length i holds up to and with step max_step[i]."""
    difficulty, max_step = curriculum.difficulty, curriculum.max_step
    if not difficulty or max_step is None or len(difficulty) != len(max_step) + 1:
        raise ConfigError(
            f"fixed_discrete needs one schedule_config.difficulty more than max_step, but has "
            f"{len(difficulty or ())} and {len(max_step or ())}: the last length has no end"
        )
    if any(a >= b for a, b in zip(max_step, max_step[1:], strict=False)):
        raise ConfigError(f"schedule_config.max_step must grow with every entry, but is {list(max_step)}: sort it")
    return difficulty, max_step
