"""The tuning of one run, before its first probe: what is searched, how each probe runs, what it all costs."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_slw.config.errors import ConfigError
from megatron_slw.config.json_file import read_json
from megatron_slw.config.load import load_config, with_train_samples, with_vocab_size
from megatron_slw.config.overrides import apply_overrides
from megatron_slw.config.schema import RunConfig
from megatron_slw.data.blend import open_samples, parts_of
from megatron_slw.data.vocabulary import resolve_vocab_size
from megatron_slw.slw.compile import compile_plan
from megatron_slw.slw.tuning import LIMIT, Probe, Space, paths, smoothest_path
from megatron_slw.slw.tuning_space import probe_plan, probe_steps, search_space, tuned_curriculum
from megatron_slw.train.estimate import flops_per_token, plan_flops

EVALUATIONS = 50
SAMPLES = 32
SAVES = 4


@dataclass(frozen=True)
class TuneJob:
    """One tuning."""

    tree: dict[str, Any]
    """The user's file with the overrides put over it."""
    config: RunConfig
    """The same, resolved, with the vocabulary and the samples of the data."""
    space: Space
    steps: int
    """Of a probe."""
    interval: int
    """Steps between its validations."""
    samples: int
    """Windows of each."""
    limit: float
    """Perplexity over the best so far above which it fluctuates."""

    @property
    def settings(self) -> dict[str, Any]:
        """What a result depends on beside the configuration."""
        return {
            "train_batch_size": self.config.train_batch_size,
            "probe_steps": self.steps,
            "samples": self.samples,
            "limit": self.limit,
        }

    def run_flops(self) -> int:
        """FLOPs of training the run as the file has it."""
        return plan_flops(self.config.model, compile_plan(self.config))

    def probe_flops(self, probe: Probe, steps: int | None = None) -> int:
        """FLOPs of the first `steps` steps of a probe (None: of all), with its validations."""
        return self.probe_cost(probe, self.steps if steps is None else steps)[1]

    def probe_cost(self, probe: Probe, steps: int) -> tuple[int, int]:
        """Tokens trained in the first `steps` steps of a probe, and FLOPs with its validations.

        A validation is a forward pass at the full length, a third of the FLOPs of training it.
        """
        plan, model = probe_plan(self.config, probe), self.config.model
        evaluations = steps // self.interval + (steps == self.steps and steps % self.interval > 0)
        read = evaluations * self.samples * model.seq_length
        forward = read * flops_per_token(model, model.seq_length) // 3
        return plan.progress_at(steps).tokens, plan_flops(model, plan, steps) + forward

    def flops(self, probes: Iterable[Probe]) -> int:
        """FLOPs of these probes, each made to its end."""
        return sum(self.probe_flops(probe) for probe in probes)

    def most_flops(self, stable: Mapping[Probe, bool] | None = None) -> int:
        """FLOPs of the probes that are still to make after these results, at the worst."""
        known: dict[Probe, int] = {}
        for path in paths(self.space, stable):
            for probe in path:
                if probe not in known:
                    known[probe] = self.probe_flops(probe)
        return max(sum(known[probe] for probe in path) for path in paths(self.space, stable))

    def least_flops(self) -> int:
        """FLOPs of the probes if none fluctuates."""
        return self.flops(smoothest_path(self.space))

    def most_probes(self) -> int:
        """How many there can be."""
        return max(len(path) for path in paths(self.space))

    def probe_tree(self, probe: Probe, directory: Path) -> dict[str, Any]:
        """The configuration file of a probe that runs in `directory`."""
        overrides = {
            "train_batch_size": self.config.train_batch_size,  # with another number of ranks it would not work out
            "evaluation.interval": self.interval,
            "evaluation.samples": self.samples,
            "evaluation.tasks": None,
            "checkpoint.directory": None,
            "checkpoint.interval": max(1, self.steps // SAVES),
            "checkpoint.keep_last": 1,
            "logging.directory": str(directory),
            "logging.tensorboard": False,
        }
        items = [f"--{name}={json.dumps(value)}" for name, value in overrides.items()]
        return apply_overrides(self.chosen_tree(probe), items)[0]

    def chosen_tree(self, probe: Probe) -> dict[str, Any]:
        """The user's file with this schedule in its curriculum block."""
        changes = [
            f"--curriculum.min_difficulty={probe.min_difficulty}",
            f"--curriculum.total_curriculum_step={probe.total_curriculum_step}",
            "--curriculum.total_curriculum_tokens=null",
            "--curriculum.duration=null",
        ]
        tree: dict[str, Any] = _without_nulls(apply_overrides(self.tree, changes)[0])
        return tree


def tune_job(
    path: str | Path,
    overrides: Sequence[str] = (),
    world_size: int = 1,
    steps: int | None = None,
    samples: int = SAMPLES,
    limit: float = LIMIT,
) -> TuneJob:
    """The tuning of the run that a file describes.

    Args:
        path: the JSON file.
        overrides: as for training.
        world_size: ranks that a probe runs on.
        steps: of a probe; None is 10/3 of the learning-rate warmup's.
        samples: validation windows at most; `evaluation.samples` where that is fewer.
        limit: perplexity over the best so far above which a probe fluctuates.

    Raises:
        ConfigError: in the file, or nothing can be tuned.
    """
    config = load_config(path, overrides, world_size)
    tree, _ = apply_overrides(read_json(path), overrides)
    if config.checkpoint.load is not None:
        raise ConfigError(
            f"checkpoint.load is {config.checkpoint.load}, but the start length is that of a run from its first step: "
            "take it away with --checkpoint.load=null."
        )
    tuned_curriculum(config)
    for name, value, least in (("probe-steps", steps, 2), ("samples", samples, 1)):
        if value is not None and value < least:
            raise ConfigError(f"--{name} must be at least {least}, not {value}.")
    if not 1.0 < limit < 100.0:
        raise ConfigError(f"--limit must be above 1 and below 100, not {limit:g}: it is a ratio of perplexities.")
    config, windows = _with_data(config)
    chosen = steps or probe_steps(config)
    return TuneJob(
        tree=_without_nulls(copy.deepcopy(tree)),
        config=config,
        space=search_space(config, chosen),
        steps=chosen,
        interval=max(1, chosen // EVALUATIONS),
        samples=min(samples, config.evaluation.samples, windows),
        limit=limit,
    )


def _with_data(config: RunConfig) -> tuple[RunConfig, int]:
    """The configuration with what the data says, and the number of validation windows."""
    train = open_samples(config.data, config.model.seq_length, "train")
    valid = open_samples(config.data, config.model.seq_length, "valid")
    config = with_vocab_size(config, resolve_vocab_size(parts_of(train)[0].dataset, config.model.vocab_size))
    return with_train_samples(config, len(train)), len(valid)


def _without_nulls(tree: Any) -> Any:
    """`tree` without the settings that an override took away."""
    if not isinstance(tree, dict):
        return tree
    return {name: _without_nulls(value) for name, value in tree.items() if value is not None}
