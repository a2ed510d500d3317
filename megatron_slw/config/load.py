"""From the user's JSON file to a RunConfig: read, override, take apart, type, resolve, check."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_slw.config import deepspeed_keys, rules
from megatron_slw.config.curriculum import LEGACY_KEY, NEW_KEY, take_curricula
from megatron_slw.config.errors import ConfigError, require_known, require_object, show, validate
from megatron_slw.config.json_file import read_json
from megatron_slw.config.overrides import OUR_KEY, SECTIONS, apply_overrides
from megatron_slw.config.schema import (
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    LoggingConfig,
    ModelConfig,
    OpsConfig,
    ParallelConfig,
    RunConfig,
    Section,
    TrainingConfig,
)

_CLASSES: dict[str, type[Section]] = {
    "model": ModelConfig,
    "parallel": ParallelConfig,
    "data": DataConfig,
    "training": TrainingConfig,
    "evaluation": EvaluationConfig,
    "checkpoint": CheckpointConfig,
    "logging": LoggingConfig,
    "ops": OpsConfig,
}


def load_config(path: str | Path, overrides: Sequence[str] = (), world_size: int = 1) -> RunConfig:
    """The run that the JSON file at `path` describes on `world_size` ranks, with the `overrides` put over it.

    An override is `--model.num_layers=24`; see `overrides.apply_overrides`.

    Raises:
        ConfigError: anything wrong in the file or the overrides, one fault at a time, in one line that begins
            with the file's path (or with "command line" where an override brought the value in).
    """
    source = str(path)
    set_paths: tuple[str, ...] = ()
    try:
        tree = read_json(path)
        source = "command line"
        tree, set_paths = apply_overrides(tree, overrides)
        source = str(path)
        return resolve(tree, world_size)
    except ConfigError as error:
        message = str(error)
        if any(message.startswith((name, name.removeprefix(f"{OUR_KEY}."))) for name in set_paths):
            source = "command line"
        raise ConfigError(f"{source}: {message}") from None


def resolve(tree: dict[str, Any], world_size: int = 1) -> RunConfig:
    """The checked configuration of one run from the parsed JSON `tree`, which is left as it is.

    Raises:
        ConfigError: the first fault found, without the file's name.
    """
    if isinstance(world_size, bool) or not isinstance(world_size, int) or world_size < 1:
        raise ConfigError(f"the world size must be an integer greater than 0, not {show(world_size)}.")
    # A null is how an override takes a setting of the file away; DeepSpeed would stumble over it.
    tree = {name: copy.deepcopy(value) for name, value in tree.items() if value is not None}
    deepspeed_keys.check_top_level(tree, also_valid=(OUR_KEY, LEGACY_KEY, NEW_KEY))
    sections = _sections(tree.pop(OUR_KEY, None))
    model, parallel = sections["model"], sections["parallel"]
    assert isinstance(model, ModelConfig) and isinstance(parallel, ParallelConfig), (
        "sections have their own classes"
    )
    rules.check_layout(model, parallel, world_size)
    optimizer = deepspeed_keys.read_optimizer(tree.pop("optimizer", None))
    precision = deepspeed_keys.read_precision(tree)
    zero_stage = deepspeed_keys.read_zero_stage(tree)
    clipping = deepspeed_keys.read_gradient_clipping(tree)
    replicas = world_size // (parallel.tensor * parallel.pipeline)
    train, micro, accumulation = rules.resolve_batch(*deepspeed_keys.read_batch_keys(tree), replicas)
    curricula = take_curricula(tree, model.seq_length, train)
    for name in ("gradient_clipping", *deepspeed_keys.BATCH_KEYS):
        tree.pop(name, None)
    config = RunConfig.model_validate(
        {
            **sections,
            "optimizer": optimizer,
            "curriculum": curricula.lengths,
            "batch_warmup": curricula.rows,
            "world_size": world_size,
            "train_batch_size": train,
            "micro_batch_size": micro,
            "gradient_accumulation_steps": accumulation,
            "precision": precision,
            "zero_stage": zero_stage,
            "gradient_clipping": clipping,
            "deepspeed": tree,
        }
    )
    rules.check(config)
    return config


def _sections(value: Any) -> dict[str, Section]:
    if value is None:
        raise ConfigError(f"{OUR_KEY} is missing: it holds model, data, training and logging, at the least.")
    block = require_object(value, OUR_KEY)
    require_known(block, SECTIONS, OUR_KEY)
    sections: dict[str, Section] = {}
    for name, cls in _CLASSES.items():
        path, content = f"{OUR_KEY}.{name}", block.get(name)
        given = {} if content is None else require_object(content, path)
        require_known(given, cls.model_fields, path)  # before a misspelt name with a null is dropped
        sections[name] = validate(cls, {key: value for key, value in given.items() if value is not None}, path)
    return sections


def to_json(config: RunConfig) -> dict[str, Any]:
    """`config` in plain JSON types; `RunConfig.model_validate` of it gives an equal configuration."""
    return config.model_dump(mode="json")


def with_train_samples(config: RunConfig, samples_per_epoch: int) -> RunConfig:
    """`config` with training.train_epochs as the samples these are."""
    epochs = config.training.train_epochs
    if epochs is None:
        return config
    changes = {"train_epochs": None, "train_samples": epochs * samples_per_epoch}
    return config.model_copy(update={"training": config.training.model_copy(update=changes)})


def with_vocab_size(config: RunConfig, vocab_size: int) -> RunConfig:
    """`config` with the vocabulary size of the dataset.

    Raises:
        ConfigError: the configuration names another size. A smaller one would index beyond the embedding
            table, a larger one means that the dataset was written with another tokenizer than the one the
            user thinks of.
    """
    given = config.model.vocab_size
    if given is not None and given != vocab_size:
        raise ConfigError(
            f"model.vocab_size {given} is not the {vocab_size} of the dataset {config.data.path}. "
            "Remove model.vocab_size to take the dataset's, or preprocess the text with the other tokenizer."
        )
    if given == vocab_size:
        return config
    model = validate(ModelConfig, {**config.model.model_dump(), "vocab_size": vocab_size}, "model")
    rules.check_layout(model, config.parallel, config.world_size)
    return config.model_copy(update={"model": model})
