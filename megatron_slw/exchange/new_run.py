"""A checkpoint of step 0 from tensors of elsewhere, and the JSON file of the run that begins with it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_slw.checkpoint import format as layout
from megatron_slw.checkpoint.state import TrainingState
from megatron_slw.config.errors import ConfigError, require_object
from megatron_slw.config.json_file import read_json
from megatron_slw.config.load import resolve, with_train_samples
from megatron_slw.config.overrides import OUR_KEY, apply_overrides
from megatron_slw.config.schema import ModelConfig, RunConfig
from megatron_slw.data.blend import open_samples
from megatron_slw.growth import stream
from megatron_slw.growth.derive import MODEL_SIZES, run_directory
from megatron_slw.growth.grow import CONFIG_FILE
from megatron_slw.growth.stage import TensorSource
from megatron_slw.progress import Progress
from megatron_slw.slw.compile import compile_plan


class ExchangeError(RuntimeError):
    """A file could not be written; what is there goes on with the same command."""


@dataclass(frozen=True)
class NewRun:
    """A run that has trained nothing yet."""

    save: Path
    """Of its first checkpoint."""
    config: RunConfig
    tree: dict[str, Any]
    """Its JSON file."""
    state: TrainingState
    """Of the checkpoint."""

    @property
    def config_path(self) -> Path:
        """Where the JSON file goes."""
        return run_directory(self.save) / CONFIG_FILE


def plan_run(
    save: Path, ds_config: str, overrides: Sequence[str], model: ModelConfig | None = None, optimizer_steps: int = 0
) -> NewRun:
    """Resolve a run; nothing is written.

    Args:
        save: where the checkpoint goes, `.../step_000000`.
        ds_config: JSON file of the run.
        overrides: settings put over the file's.
        model: sizes in place of the file's; None takes the file's.
        optimizer_steps: updates that the optimizer has counted.

    Raises:
        ConfigError: the settings do not fit each other or the model, or something is in the place of the checkpoint.
    """
    _check_target(save)
    try:
        tree = _with_directories(read_json(ds_config), save)
    except ConfigError as error:
        raise ConfigError(f"{ds_config}: {error}") from None
    if model is not None:
        sizes = {name: getattr(model, name) for name in MODEL_SIZES}
        given = {name: value for name, value in tree[OUR_KEY].get("model", {}).items() if name not in MODEL_SIZES}
        tree[OUR_KEY]["model"] = given | {name: value for name, value in sizes.items() if value is not None}
    tree, paths = apply_overrides(tree, overrides)
    fixed = [name for name in MODEL_SIZES if f"{OUR_KEY}.model.{name}" in paths]
    if model is not None and fixed:
        raise ConfigError(f"--model.{fixed[0]} cannot be set: the imported model says it. Remove it.")
    try:
        config = _with_samples(resolve(tree, _ranks(tree)))
        run = NewRun(save, config, tree, _state(config, optimizer_steps))
    except ConfigError as error:
        raise ConfigError(f"{ds_config}: {error}") from None
    if config.model.vocab_size is None:
        raise ConfigError(f"{ds_config}: model.vocab_size is not set. Set it to that of the imported model.")
    if run.config_path.exists():
        raise ConfigError(f"{run.config_path} is there already, of another run. Name another run directory.")
    return run


def write(
    run: NewRun,
    tensors: TensorSource,
    request: Mapping[str, Any],
    workers: int,
    progress: Callable[[str, int], None],
) -> None:
    """Write the checkpoint and the JSON file.

    Args:
        run: from `plan_run`.
        tensors: all that the checkpoint needs.
        request: what decides every byte of them.
        workers: files written at a time.
        progress: told of each tensor's key and bytes, from other threads.

    Raises:
        ConfigError: a tensor cannot be had; nothing is left behind.
        ExchangeError: a file cannot be written.
    """
    writing = run.save.with_name(run.save.name + layout.WRITING)
    try:
        stream.prepare(writing, request)
        stream.write_all(tensors, writing, workers, progress)
        layout.write_json(writing / layout.STATE, run.state.to_json())
        layout.write_manifest(writing, stream.manifest_records(writing))
        part = run.config_path.with_name(run.config_path.name + stream.PART)
        layout.write_json(part, run.tree)
        os.replace(part, run.config_path)
        (writing / stream.REQUEST).unlink()
        layout.rename_complete(writing, run.save)
    except ConfigError:
        shutil.rmtree(writing, ignore_errors=True)
        raise
    except OSError as error:
        raise ExchangeError(
            f"{run.save} could not be written: {error}. The same command goes on from what is written."
        ) from None


def _with_directories(tree: dict[str, Any], save: Path) -> dict[str, Any]:
    """The file's tree with the directories of the new run; our sections are objects."""
    block = require_object(tree.get(OUR_KEY), OUR_KEY)
    ours = {name: require_object(value, f"{OUR_KEY}.{name}") for name, value in block.items() if value is not None}
    ours["logging"] = ours.get("logging", {}) | {"directory": str(run_directory(save))}
    ours["checkpoint"] = {
        name: value for name, value in ours.get("checkpoint", {}).items() if name not in ("load", "directory")
    }
    if save.parent.name != "checkpoints":
        ours["checkpoint"]["directory"] = str(save.parent)
    return tree | {OUR_KEY: ours}


def _ranks(tree: Mapping[str, Any]) -> int:
    """The fewest that can hold the model as the settings split it."""
    parallel = tree[OUR_KEY].get("parallel") or {}
    sizes = [parallel.get(name, 1) for name in ("tensor", "pipeline")]
    return sizes[0] * sizes[1] if all(type(size) is int and 0 < size < 1 << 20 for size in sizes) else 1


def _with_samples(config: RunConfig) -> RunConfig:
    """Only an end given in epochs needs the data."""
    if config.training.train_epochs is None:
        return config
    return with_train_samples(config, len(open_samples(config.data, config.model.seq_length, "train")))


def _check_target(save: Path) -> None:
    if save.name != layout.step_folder(save.parent, 0).name:
        raise ConfigError(f"--save {save} must end in step_000000: an imported model has trained no step here.")
    if save.exists():
        raise ConfigError(f"--save {save} is there already. Delete it, or name another.")
    others = layout.complete_checkpoints(save.parent)
    if others:
        raise ConfigError(
            f"--save {save}: {save.parent} has checkpoints of another run ({others[-1].name}). Name a new run "
            "directory, like runs/imported/checkpoints/step_000000."
        )


def _state(config: RunConfig, optimizer_steps: int) -> TrainingState:
    steps = None if config.optimizer.type == "SGD" else optimizer_steps
    return TrainingState(Progress(), compile_plan(config), config, optimizer_steps=steps)
