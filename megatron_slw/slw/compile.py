"""From a configuration to the length plan, in milliseconds whatever the number of steps."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_slw.config.errors import ConfigError
from megatron_slw.config.schema import CurriculumConfig, RunConfig
from megatron_slw.slw.ledger import Ledger
from megatron_slw.slw.plan import Plan, Run
from megatron_slw.slw.resolve import resolve_schedules
from megatron_slw.slw.schedule import Decision, difficulty_at, next_change, stages


def compile_plan(config: RunConfig, decisions: Sequence[Decision] = ()) -> Plan:
    """Compile the schedule of a run.

    The run ends after `training.train_steps`; or with the first step that brings the trained tokens to
    `training.train_tokens`; or when `training.train_samples` samples were drawn and what was cut off has come back.
    The last step is then filled up with padding rows, which train nothing. Where the samples run out before the warmup
    is over, what has to come back follows at once, at the full length.

    Args:
        config: with training.train_samples in place of training.train_epochs.
        decisions: what a loss_adaptive schedule has decided so far; the plan goes on as if there came no other.

    Raises:
        ConfigError: not exactly one of the three is set, a duration cannot be had, or a length exceeds
            model.seq_length.
    """
    _one_end(config)
    config = resolve_schedules(config, plan_of)
    curriculum = config.curriculum
    if curriculum is not None and curriculum.schedule_type == "loss_adaptive":
        config = config.model_copy(update={"curriculum": stages(curriculum, decisions)})
    return plan_of(config)


def plan_of(config: RunConfig) -> Plan:
    """The plan of a configuration whose schedules are resolved."""
    full, training = config.model.seq_length, config.training
    curriculum = config.curriculum
    mode = "seqlen_truncate" if curriculum is None else curriculum.mode
    ledger = Ledger(mode, full, training.train_samples)
    runs: list[Run] = []
    step = 0
    while True:
        forced = ledger.drawn_out
        length = full if forced else difficulty_at(curriculum, full, step + 1)
        rows = difficulty_at(config.batch_warmup, config.train_batch_size, step + 1)
        end = step + _steps_left(config, ledger, step, length, rows)
        if end == step:
            return Plan(tuple(runs), step, full, mode, training.train_samples)
        if not runs or runs[-1][1:] != (length, rows):
            runs.append(Run(step, length, rows))
        change = end if forced else _change(curriculum, full, step, end)
        change = min(change, _change(config.batch_warmup, config.train_batch_size, step, end))
        ledger.extend((change - step) * rows, length)
        step = change


def _steps_left(config: RunConfig, ledger: Ledger, step: int, length: int, rows: int) -> int:
    """Steps of this shape that the run has at least left; 0 at its end."""
    training = config.training
    if training.train_steps is not None:
        return training.train_steps - step
    if training.train_tokens is not None:
        return max(0, -(-(training.train_tokens - ledger.labels) // (rows * length)))
    return -(-ledger.rows_left(length) // rows)


def _change(curriculum: CurriculumConfig | None, full: int, step: int, end: int) -> int:
    """The first step after `step` of another difficulty, at most `end`; both 0-based."""
    return next_change(curriculum, full, step + 1, end + 1) - 1


def _one_end(config: RunConfig) -> None:
    ends = {name: getattr(config.training, name) for name in ("train_tokens", "train_steps", "train_samples")}
    if sum(value is not None for value in ends.values()) != 1:
        given = ", ".join(f"training.{name} ({value})" for name, value in ends.items())
        raise ConfigError(f"exactly one of {given} says when to stop: set one")
