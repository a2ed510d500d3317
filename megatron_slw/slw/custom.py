"""Schedules that the user wrote: a function by its import path, `module:function`."""

from __future__ import annotations

from megatron_slw.config.errors import ConfigError
from megatron_slw.config.import_path import load_function
from megatron_slw.config.schema import CurriculumConfig


def custom_difficulty(curriculum: CurriculumConfig, t: int) -> int:
    """The value of the user's function for the t-th step (1-based).

    The function is called as function(t, min_difficulty, max_difficulty) and must be pure: every rank calls it, and a
    resume calls it again.

    Raises:
        ConfigError: it cannot be imported, fails, or gives something else than an integer in
            [min_difficulty, max_difficulty].
    """
    path, low, high = curriculum.function or "", curriculum.min_difficulty, curriculum.max_difficulty
    function = load_function(path, "schedule_config.function")
    try:
        length = function(t, low, high)
    except Exception as error:
        raise ConfigError(f"schedule_config.function {path} failed at step {t}: {error!r:.200}") from error
    if type(length) is not int or not low <= length <= high:
        raise ConfigError(
            f"schedule_config.function {path} gives {length!r:.60} for step {t}, but must give an integer from "
            f"min_difficulty {low} to max_difficulty {high}."
        )
    return length
