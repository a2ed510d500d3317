"""What a tuning searches, worked out from the configuration of the run: lengths of probes, start lengths, durations."""

from __future__ import annotations

import math
from bisect import bisect_right
from fractions import Fraction

from megatron_slw.config.errors import ConfigError
from megatron_slw.config.schema import CurriculumConfig, RunConfig
from megatron_slw.slw.compile import compile_plan, plan_of
from megatron_slw.slw.plan import Plan
from megatron_slw.slw.resolve import resolve_schedules
from megatron_slw.slw.tuning import Probe, Space

WARMUPS = Fraction(10, 3)
"""Steps of a probe over those of the learning-rate warmup: the paper's 10K for 3K."""
TUNED = ("fixed_linear", "fixed_root")
SHORTEST = 8
"""Tokens: the paper's shortest start."""
LONGEST_SHARE = Fraction(4, 5)
"""Of the run's steps, for the warmup; the paper's longest took 77 %."""
MOST_DURATIONS = 16


def tuned_curriculum(config: RunConfig) -> CurriculumConfig:
    """The schedule to tune, its grid resolved; ConfigError where there is none of the two kinds that can be."""
    curriculum = config.curriculum
    if curriculum is None:
        raise ConfigError(
            "there is no curriculum to tune: add a block data_efficiency.data_sampling.curriculum_learning with "
            "schedule_type fixed_linear; any min_difficulty and total_curriculum_step will do."
        )
    if curriculum.schedule_type not in TUNED:
        raise ConfigError(
            f"curriculum.schedule_type is {curriculum.schedule_type}, but a start length and a duration are tuned, as "
            f"{' and '.join(TUNED)} have them: use one of these."
        )
    resolved = resolve_schedules(config, plan_of).curriculum
    assert resolved is not None, "a curriculum stays one"
    return resolved


def probe_steps(config: RunConfig) -> int:
    """Steps of a probe: 10/3 of the learning-rate warmup's, rounded up to two digits.

    A warmup in tokens takes as many steps as the schedule of the file makes of it.

    Raises:
        ConfigError: the run has no learning-rate warmup.
    """
    training = config.training
    steps = training.lr_warmup_steps
    if training.lr_warmup_tokens:
        plan = compile_plan(config)
        steps = plan.steps_to_tokens(min(training.lr_warmup_tokens, plan.tokens_trained))
    if not steps:
        raise ConfigError(
            "training.lr_warmup_steps and lr_warmup_tokens are not set, so nothing says how long a probe should be: "
            "set one of them, or give --probe-steps."
        )
    return two_digits(math.ceil(steps * WARMUPS))


def two_digits(count: int) -> int:
    """`count` rounded up to two significant digits."""
    unit: int = 10 ** max(0, len(str(count)) - 2)
    return -(-count // unit) * unit


def search_space(config: RunConfig, steps: int) -> Space:
    """Start lengths by doubling from 8 to below the last length, and durations from `steps` to 4/5 of the run.

    Durations are `steps` plus multiples of half of it, or of more where there would be over 16.

    Args:
        config: of the run, resolved as `compile_plan` wants it.
        steps: of a probe, which is also the duration at which the start length is sought.

    Raises:
        ConfigError: the run is shorter than a probe, or has no schedule that can be tuned.
    """
    curriculum = tuned_curriculum(config)
    quantum = curriculum.difficulty_step or 1
    starts = [-(-SHORTEST // quantum) * quantum]
    while starts[-1] * 2 < curriculum.max_difficulty:
        starts.append(starts[-1] * 2)
    if starts[0] >= curriculum.max_difficulty:
        raise ConfigError(
            f"curriculum.max_difficulty {curriculum.max_difficulty} leaves no start length to choose: the first would "
            f"be {starts[0]}, by curriculum.difficulty_step {quantum}."
        )
    total = probe_plan(config, Probe(starts[0], steps)).total_steps
    if steps > total:
        raise ConfigError(
            f"the run has {total} steps, fewer than a probe of {steps}: give a smaller --probe-steps, or tune the run "
            "that you mean to make."
        )
    return Space(tuple(starts), tuple(_durations(config, start, steps) for start in starts))


def probed(config: RunConfig, probe: Probe) -> RunConfig:
    """`config` with the schedule of a probe."""
    changes = {
        "min_difficulty": probe.min_difficulty,
        "total_curriculum_step": probe.total_curriculum_step,
        "total_curriculum_tokens": None,
        "duration": None,
    }
    curriculum = config.curriculum.model_copy(update=changes) if config.curriculum else None
    return config.model_copy(update={"curriculum": curriculum})


def probe_plan(config: RunConfig, probe: Probe) -> Plan:
    """The plan of the whole run with the schedule of a probe."""
    return compile_plan(probed(config, probe))


def _durations(config: RunConfig, start: int, steps: int) -> tuple[int, ...]:
    longest = max(steps, _longest(config, start, steps))
    stride = max(-(-steps // 2), two_digits(-(-(longest - steps) // (MOST_DURATIONS - 1))))
    return tuple(range(steps, longest + 1, stride))


def _longest(config: RunConfig, start: int, steps: int) -> int:
    """The longest duration within its share of the run; a longer one makes the run longer, but by less."""

    def too_long(duration: int) -> bool:
        return duration > LONGEST_SHARE * probe_plan(config, Probe(start, duration)).total_steps

    high = steps
    while not too_long(high):
        high *= 2
    return bisect_right(range(high), False, lo=1, key=too_long) - 1
