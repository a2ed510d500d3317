"""A whole run on one rank, as pretrain_gpt.py makes it once the processes have met."""

from __future__ import annotations

from megatron_slw.config.schema import RunConfig
from megatron_slw.parallel.groups import build_groups
from megatron_slw.progress import Progress
from megatron_slw.train.job import build_job
from megatron_slw.train.loop import train


def train_run(config: RunConfig) -> Progress:
    """Train from wherever the run stands to its end."""
    return train(build_job(config, build_groups(config.parallel)))
