"""How long the sequences of a step are: pure functions of the step.

Formulas, names and the clock are those of DeepSpeed 0.19.8 (runtime/data_pipeline/curriculum_scheduler.py),
so that a published configuration keeps its meaning: `t` counts from 1. What DeepSpeed gets wrong is not
repeated: its scheduler stops recomputing once it has seen the maximum (a list that starts there or goes
down freezes), and it divides by zero where the duration is 0 (here a ConfigError).
"""

from __future__ import annotations

import math
from bisect import bisect_left

from megatron_slw.config.errors import ConfigError
from megatron_slw.config.schema import CurriculumConfig


def seq_len_at(curriculum: CurriculumConfig | None, full: int, t: int) -> int:
    """Return the sequence length, in tokens, of the t-th step (1-based).

    Without a curriculum it is always `full`. A curriculum may end below `full`: its last length is its own
    `max_difficulty` (or last `difficulty`), also where that is no multiple of `difficulty_step`. It then
    comes a little after total_curriculum_step, as in DeepSpeed: when the ramp passes the next multiple.

    Raises:
        ValueError: t < 1.
        ConfigError: a setting that the schedule type needs is missing.
    """
    if t < 1:
        raise ValueError(f"schedule steps count from 1, but t is {t}")
    if curriculum is None:
        return full
    if curriculum.schedule_type == "fixed_discrete":
        difficulty, max_step = _discrete_lists(curriculum)
        return difficulty[bisect_left(max_step, t)]
    return _ramp(curriculum, t)


def next_change(curriculum: CurriculumConfig | None, full: int, t: int, end: int) -> int:
    """Return the first step after t whose length differs from that of step t, or `end` if none below it does.

    Takes O(log end) evaluations, so a run of any number of steps compiles at once.
    """
    if curriculum is None:
        return end
    length = seq_len_at(curriculum, full, t)
    if curriculum.schedule_type == "fixed_discrete":
        _, max_step = _discrete_lists(curriculum)
        for last in max_step[bisect_left(max_step, t) :]:
            if last + 1 >= end or seq_len_at(curriculum, full, last + 1) != length:
                return min(last + 1, end)
        return end
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


def _ramp(curriculum: CurriculumConfig, t: int) -> int:
    """fixed_linear and fixed_root, in DeepSpeed's order of float operations: floor() shows the last bit."""
    low, high = curriculum.min_difficulty, curriculum.max_difficulty
    total, quantum = curriculum.total_curriculum_step, curriculum.difficulty_step
    degree = 1 if curriculum.schedule_type == "fixed_linear" else curriculum.root_degree
    if not total or not quantum or not degree:
        raise ConfigError(
            f"{curriculum.schedule_type} needs schedule_config.total_curriculum_step and difficulty_step"
            f"{'' if curriculum.schedule_type == 'fixed_linear' else ' and root_degree'}: set what is missing"
        )
    fraction: float = (float(t) / total) ** (1.0 / degree)
    length = math.floor(fraction * (high - low) + low)
    length -= length % quantum
    # Rounding down must not fall below the start: min 8 with step 16 would give length 0.
    length = max(length, -(-low // quantum) * quantum)
    return min(length, high)


def _discrete_lists(curriculum: CurriculumConfig) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return (difficulty, max_step) of fixed_discrete: length i holds up to and with step max_step[i]."""
    difficulty, max_step = curriculum.difficulty, curriculum.max_step
    if not difficulty or max_step is None or len(difficulty) != len(max_step) + 1:
        raise ConfigError(
            f"fixed_discrete needs one schedule_config.difficulty more than max_step, but has "
            f"{len(difficulty or ())} and {len(max_step or ())}: the last length has no end"
        )
    if any(a >= b for a, b in zip(max_step, max_step[1:], strict=False)):
        raise ConfigError(
            f"schedule_config.max_step must grow with every entry, but is {list(max_step)}: sort it"
        )
    return difficulty, max_step
