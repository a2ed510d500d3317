"""How the difficulties of a curriculum must fit each other, the model and the layout."""

from __future__ import annotations

from itertools import pairwise

from megatron_slw.config.errors import ConfigError, listing
from megatron_slw.config.schema import CurriculumConfig, RunConfig


def check_curriculum(config: RunConfig) -> None:
    """Every rule on the curricula of `config`; raises ConfigError at the first that does not hold."""
    lengths, rows = config.curriculum, config.batch_warmup
    if lengths is not None:
        _range(lengths, config.model.seq_length, "model.seq_length", "length")
        if lengths.schedule_type == "fixed_discrete":
            _stages(lengths, config.model.seq_length, "model.seq_length", "length")
        _sequence_parallel_stages(config, lengths)
        _adaptive_decay(config, lengths)
    if rows is not None:
        _range(rows, config.train_batch_size, "train_batch_size", "batch")
        if rows.schedule_type == "fixed_discrete":
            _stages(rows, config.train_batch_size, "train_batch_size", "batch")
        _rows_of_replicas(config, rows)
    if lengths is not None and rows is not None:
        for schedule in (lengths, rows):
            _in_steps(schedule)


def warnings(config: RunConfig) -> list[str]:
    """What is allowed and most often a mistake, a sentence each."""
    if config.curriculum is None or config.batch_warmup is None:
        return []
    return [
        "a batch-size warmup and a sequence-length warmup are both on: each makes the first steps smaller, and both "
        "together make them very small. Sequence-length warmup is meant to replace the batch-size one; remove the "
        "batch_size metric unless you mean it."
    ]


def _range(curriculum: CurriculumConfig, full: int, setting: str, what: str) -> None:
    low, high = curriculum.min_difficulty, curriculum.max_difficulty
    if low > high:
        raise ConfigError(f"min_difficulty {low} is more than max_difficulty {high}. Lower it.")
    if high > full:
        beyond = ", and there are no positions beyond it" if what == "length" else ""
        raise ConfigError(f"max_difficulty {high} is more than {setting} {full}{beyond}. Use {full}.")
    # DeepSpeed would train on at the shorter length to the end, and some positions would never be trained.
    if high < full and curriculum.schedule_type != "fixed_discrete":
        raise ConfigError(
            f"max_difficulty {high} is less than {setting} {full}: the warmup must end at the full {what}. Use {full}, "
            f"or lower {setting}."
        )


def _stages(curriculum: CurriculumConfig, full: int, setting: str, what: str) -> None:
    lengths = curriculum.difficulty or ()
    names = ("max_step", "max_tokens", "max_fraction")
    name = next(name for name in names if getattr(curriculum, name) is not None)
    ends: tuple[float, ...] = getattr(curriculum, name)
    if len(lengths) != len(ends) + 1:
        raise ConfigError(
            f"schedule_config.difficulty has {len(lengths)} {what}s and {name} {len(ends)} ends: a stage "
            f"ends at each and the last stage has no end. Give one {what} more than ends."
        )
    for before, after in pairwise(ends):
        if after <= before:
            raise ConfigError(f"schedule_config.{name} must increase, it has {before} before {after}.")
    for length in lengths:
        if length > full:
            raise ConfigError(f"schedule_config.difficulty {length} is more than {setting} {full}. Use at most {full}.")
    if lengths[-1] != full:
        raise ConfigError(
            f"schedule_config.difficulty ends at {lengths[-1]}, not at {setting} {full}: the warmup must end at the "
            f"full {what}. Add {full}."
        )


def _sequence_parallel_stages(config: RunConfig, curriculum: CurriculumConfig) -> None:
    """Listed lengths must divide; the lengths of a ramp are rounded to what does."""
    tensor = config.parallel.tensor
    if not config.parallel.sequence_parallel or curriculum.schedule_type != "fixed_discrete":
        return
    for value in curriculum.difficulty or ():
        if value % tensor:
            raise ConfigError(
                f"schedule_config.difficulty {value} is not divisible by parallel.tensor {tensor}, which "
                f"parallel.sequence_parallel needs. Use multiples of {tensor}, or switch it off."
            )


def _rows_of_replicas(config: RunConfig, rows: CurriculumConfig) -> None:
    """Every batch is shared by the replicas evenly; a ramp gives multiples of difficulty_step, and the global batch."""
    replicas = config.data_parallel_size
    discrete = rows.schedule_type == "fixed_discrete"
    name = "difficulty" if discrete else "difficulty_step"
    for value in (rows.difficulty or ()) if discrete else (rows.difficulty_step or 1,):
        if value % replicas:
            raise ConfigError(
                f"batch_size.schedule_config.{name} {value} is not divisible by data-parallel {replicas}. Use "
                f"multiples of {replicas}."
            )


def _in_steps(schedule: CurriculumConfig) -> None:
    for name in ("total_curriculum_tokens", "duration", "max_tokens", "max_fraction"):
        if getattr(schedule, name) is not None:
            steps = "max_step" if name.startswith("max") else "total_curriculum_step"
            raise ConfigError(
                f"{schedule.mode}.schedule_config.{name} depends on the rest of the run, and with two curricula each "
                f"would depend on the other. Give {steps}, or keep one curriculum."
            )


def _adaptive_decay(config: RunConfig, curriculum: CurriculumConfig) -> None:
    """A loss_adaptive schedule is not known in advance, and so neither are the tokens that a number of steps trains."""
    training = config.training
    known = training.train_tokens is not None or training.lr_decay_tokens is not None
    if curriculum.schedule_type != "loss_adaptive" or known or training.lr_decay_style == "constant":
        return
    knobs = listing(("training.lr_decay_tokens", "training.train_tokens", 'training.lr_decay_style "constant"'))
    raise ConfigError(
        f"training.lr_decay_style {training.lr_decay_style} ends with the run's tokens, which a loss_adaptive schedule "
        f"does not know in advance. Give {knobs}."
    )
