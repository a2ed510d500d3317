"""Runs with a logger of the user's own, on the processes of the pool."""

from __future__ import annotations

import sys

from megatron_slw.config.errors import ConfigError
from megatron_slw.config.schema import RunConfig
from megatron_slw.parallel.groups import build_groups
from megatron_slw.train.job import build_job
from megatron_slw.train.loop import train


def logged_run(modules: str, config: RunConfig, stop_after: int | None) -> int:
    """Train; the step it came to."""
    sys.path.insert(0, modules)
    return train(build_job(config, build_groups(config.parallel)), stop_after).step


def refused_run(modules: str, config: RunConfig) -> str:
    """What the run is refused with."""
    try:
        logged_run(modules, config, None)
    except ConfigError as error:
        return str(error)
    return "it was not refused"
