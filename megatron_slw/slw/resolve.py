"""From what the user wrote to numbers that a schedule is computed with: durations in steps, lengths on a grid.

A duration may be given in steps, in tokens or as a fraction of the run. The last two depend on the plan that they
shape, so they are found by bisection over plans: a longer warmup trains more tokens, and makes a run longer.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from fractions import Fraction
from itertools import accumulate
from typing import Any

from megatron_slw.config.schema import CurriculumConfig, RunConfig
from megatron_slw.slw.plan import Plan
from megatron_slw.slw.schedule import distinct

RAMPS = ("fixed_linear", "fixed_root", "mixed")
PlanOf = Callable[[RunConfig], Plan]


def resolve_schedules(config: RunConfig, plan_of: PlanOf) -> RunConfig:
    """`config` with the grid and the durations of its schedules filled in, in steps; a resolved one is left as it is.

    Args:
        config: checked by config.rules.
        plan_of: compiles a configuration that is resolved.
    """
    for name in ("batch_warmup", "curriculum"):
        schedule: CurriculumConfig | None = getattr(config, name)
        if schedule is not None:
            tensor = config.parallel.tensor if config.parallel.sequence_parallel and name == "curriculum" else 1
            schedule = _on_grid(schedule, tensor)
            schedule = _in_steps(_changed(config, name, schedule), name, schedule, plan_of)
            config = _changed(config, name, schedule)
    return config


def _changed(config: RunConfig, name: str, schedule: CurriculumConfig, **changes: Any) -> RunConfig:
    return config.model_copy(update={name: schedule.model_copy(update=changes)})


def _on_grid(schedule: CurriculumConfig, tensor: int) -> CurriculumConfig:
    """Lengths that `tensor` ranks can share under sequence parallelism, and not more of them than wanted."""
    if schedule.difficulty_step is None:
        return schedule
    step = math.lcm(schedule.difficulty_step, tensor)
    cap = schedule.max_distinct_lengths
    if cap is not None:  # at the coarsest grid there are two, the first and the last
        coarsest = -(-schedule.max_difficulty // step)
        step *= 1 + bisect_left(range(1, coarsest), True, key=lambda n: distinct(schedule, n * step) <= cap)
    return schedule.model_copy(update={"difficulty_step": step})


def _in_steps(config: RunConfig, name: str, schedule: CurriculumConfig, plan_of: PlanOf) -> CurriculumConfig:
    """`schedule` with its duration, or the ends of its stages, in steps."""
    if schedule.schedule_type == "fixed_discrete":
        changes = _stage_ends(config, name, schedule, plan_of)
    elif schedule.schedule_type in RAMPS:
        changes = _ramp_steps(config, name, schedule, plan_of)
    else:
        return schedule
    given = {"total_curriculum_tokens": None, "duration": None, "max_tokens": None, "max_fraction": None}
    return schedule.model_copy(update=given | changes)


def _ramp_steps(config: RunConfig, name: str, schedule: CurriculumConfig, plan_of: PlanOf) -> dict[str, Any]:
    # A mixed schedule has the lengths of a linear one, so it takes as long; and a linear one compiles at once.
    kind = "fixed_linear" if schedule.schedule_type == "mixed" else schedule.schedule_type

    def plan(steps: int, of: RunConfig) -> Plan:
        return plan_of(_changed(of, name, schedule, schedule_type=kind, total_curriculum_step=steps))

    steps, tokens = schedule.total_curriculum_step, schedule.total_curriculum_tokens
    if tokens is not None:
        most = range(1, tokens // (config.train_batch_size if name == "curriculum" else 1) + 2)
        steps = 1 + bisect_left(most, tokens, key=lambda n: plan(n, _ending(config, train_steps=n)).tokens_trained)
    elif schedule.duration is not None:
        fraction = Fraction(str(schedule.duration))
        total = _total_steps(lambda n: plan(max(1, math.floor(fraction * n)), config))
        steps = max(1, math.floor(fraction * total))
    return {"total_curriculum_step": steps}


def _stage_ends(config: RunConfig, name: str, schedule: CurriculumConfig, plan_of: PlanOf) -> dict[str, Any]:
    if schedule.max_fraction is not None:
        fractions = [Fraction(str(fraction)) for fraction in schedule.max_fraction]

        def ends_of(total: int) -> tuple[int, ...]:
            wanted = [math.floor(fraction * total) for fraction in fractions]
            return tuple(accumulate(wanted, lambda last, end: max(last + 1, end), initial=0))[1:]

        total = _total_steps(lambda n: plan_of(_changed(config, name, schedule, max_step=ends_of(n))))
        return {"max_step": ends_of(total)}
    ends = schedule.max_step or ()
    for number, tokens in enumerate(schedule.max_tokens or ()):
        lengths = (schedule.difficulty or ())[: number + 1]
        so_far = _changed(config, name, schedule, difficulty=lengths, max_step=ends)
        steps = plan_of(_ending(so_far, train_tokens=tokens)).total_steps
        ends += (max(steps, ends[-1] + 1 if ends else 1),)
    return {"max_step": ends}


def _total_steps(plan_for: Callable[[int], Plan]) -> int:
    """The steps of a run some part of which is a fraction of them: the least n for which the run of n is no longer."""
    most = 1
    while plan_for(most).total_steps > most:
        most *= 2
    return 1 + bisect_left(range(1, most), True, key=lambda n: plan_for(n).total_steps <= n)


def _ending(config: RunConfig, **end: int) -> RunConfig:
    """`config` with another end of the run."""
    ends: dict[str, int | None] = {"train_steps": None, "train_tokens": None, "train_samples": None}
    return config.model_copy(update={"training": config.training.model_copy(update=ends | end)})
