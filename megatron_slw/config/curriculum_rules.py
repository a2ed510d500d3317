"""How the lengths of a curriculum must fit each other, the model and the sequence-parallel split."""

from __future__ import annotations

from itertools import pairwise

from megatron_slw.config.errors import ConfigError
from megatron_slw.config.schema import CurriculumConfig, RunConfig


def check_curriculum(config: RunConfig) -> None:
    """Every rule on the curriculum of `config`; raises ConfigError at the first that does not hold."""
    curriculum = config.curriculum
    if curriculum is None:
        return
    _range(curriculum, config.model.seq_length)
    if curriculum.schedule_type == "fixed_discrete":
        _stages(curriculum, config.model.seq_length)
    _sequence_parallel_lengths(config, curriculum)


def _range(curriculum: CurriculumConfig, full: int) -> None:
    low, high = curriculum.min_difficulty, curriculum.max_difficulty
    if low > high:
        raise ConfigError(f"min_difficulty {low} is more than max_difficulty {high}. Lower it.")
    if high > full:
        raise ConfigError(
            f"max_difficulty {high} is more than model.seq_length {full}, and there are no positions beyond "
            f"it. Use {full}."
        )
    # DeepSpeed would train on at the shorter length to the end, and some positions would never be trained.
    if high < full and curriculum.schedule_type != "fixed_discrete":
        raise ConfigError(
            f"max_difficulty {high} is less than model.seq_length {full}: the warmup must end at the full "
            f"length. Use {full}, or lower model.seq_length."
        )


def _stages(curriculum: CurriculumConfig, full: int) -> None:
    lengths, ends = curriculum.difficulty or (), curriculum.max_step or ()
    if len(lengths) != len(ends) + 1:
        raise ConfigError(
            f"schedule_config.difficulty has {len(lengths)} lengths and max_step {len(ends)} steps: a stage "
            "ends at each step and the last stage has no end. Give one length more than steps."
        )
    for before, after in pairwise(ends):
        if after <= before:
            raise ConfigError(f"schedule_config.max_step must increase, it has {before} before {after}.")
    for length in lengths:
        if length > full:
            raise ConfigError(
                f"schedule_config.difficulty {length} is more than model.seq_length {full}. Use at most "
                f"{full}."
            )
    if lengths[-1] != full:
        raise ConfigError(
            f"schedule_config.difficulty ends at {lengths[-1]}, not at model.seq_length {full}: the warmup "
            f"must end at the full length. Add {full}."
        )


def _sequence_parallel_lengths(config: RunConfig, curriculum: CurriculumConfig) -> None:
    """Every length: a linear or root schedule gives multiples of difficulty_step, and the full length."""
    tensor = config.parallel.tensor
    if not config.parallel.sequence_parallel:
        return
    if curriculum.schedule_type == "fixed_discrete":
        name, values = "difficulty", curriculum.difficulty or ()
    else:
        name, values = "difficulty_step", (curriculum.difficulty_step or 1,)
    for value in values:
        if value % tensor:
            raise ConfigError(
                f"schedule_config.{name} {value} is not divisible by parallel.tensor {tensor}, which "
                f"parallel.sequence_parallel needs. Use multiples of {tensor}, or switch it off."
            )
