"""Make a checkpoint of step 0 from a Hugging Face GPT-2 folder: its weights, an optimizer that has not stepped."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_slw.checkpoint import format as layout
from megatron_slw.config.errors import ConfigError, require_object, show
from megatron_slw.config.json_file import read_json
from megatron_slw.config.load import resolve, to_json, with_train_samples
from megatron_slw.config.overrides import OUR_KEY, apply_overrides
from megatron_slw.config.schema import ModelConfig, RunConfig
from megatron_slw.data.blend import open_samples
from megatron_slw.exchange.export_gpt2 import ExchangeError
from megatron_slw.exchange.gpt2 import HEAD, PREFIX, WORDS, from_gpt2, gpt2_name, gpt2_shape, model_of
from megatron_slw.exchange.model_folder import CONFIG, ModelFolder
from megatron_slw.growth import stream
from megatron_slw.growth.derive import MODEL_SIZES, run_directory
from megatron_slw.growth.grow import CONFIG_FILE
from megatron_slw.growth.operators.names import split_name
from megatron_slw.growth.stage import tensor_names, tensor_shape
from megatron_slw.progress import Progress
from megatron_slw.slw.compile import compile_plan
from megatron_slw.slw.stability import Stability
from megatron_slw.train.optim import state_names

BUFFERS = (".attn.bias", ".attn.masked_bias")
"""Causal masks, which files of transformers before 4.30 hold beside the weights."""


class TrainingTensors:
    """A folder's weights under our names, and moments of zero.

    Args:
        folder: with all tensors of `model`, from `check_tensors`.
        model: its sizes.
        moments: the kinds of tensor that the optimizer keeps for each weight.
    """

    def __init__(self, folder: ModelFolder, model: ModelConfig, moments: Sequence[str]) -> None:
        self.folder, self.model, self.kinds = folder, model, ("weight", *moments)
        self.prefix = prefix_of(folder)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every key of the checkpoint and its shape."""
        return {
            f"{kind}/{name}": tensor_shape(split_name(name)[1], self.model)
            for name in tensor_names(self.model)
            for kind in self.kinds
        }

    def tensor(self, key: str) -> Tensor:
        """One of them, fp32."""
        kind, _, name = key.partition("/")
        if kind != "weight":
            return torch.zeros(self.shapes[key])
        theirs = self.folder.tensor(self.prefix + gpt2_name(name).removeprefix(PREFIX))
        return from_gpt2(name, theirs.float(), self.model)


@dataclass(frozen=True)
class Import:
    """One import, worked out and checked; `run` carries it out."""

    folder: ModelFolder
    save: Path
    config: RunConfig
    tree: dict[str, Any]
    """The JSON file of the run that begins with it."""
    state: dict[str, Any]
    """state.json of the checkpoint."""

    @cached_property
    def tensors(self) -> TrainingTensors:
        """What is written."""
        return TrainingTensors(self.folder, self.config.model, state_names(self.config.optimizer))

    @property
    def config_path(self) -> Path:
        """Where the JSON file goes."""
        return run_directory(self.save) / CONFIG_FILE


def plan_import(load: str, save: Path, ds_config: str, overrides: Sequence[str]) -> Import:
    """Read the folder's description and resolve the run that begins with it; nothing is written.

    Args:
        load: a folder with config.json and safetensors.
        save: where the checkpoint goes, `.../step_000000`.
        ds_config: JSON file of the run: everything but the model's sizes.
        overrides: settings of the run, put over the file's.

    Raises:
        ConfigError: it is no GPT-2 that can be trained here, or the run's settings do not fit it.
    """
    folder = ModelFolder(load)
    try:
        model = model_of(folder.settings)
    except ConfigError as error:
        raise ConfigError(f"{folder.path / CONFIG}: {error}") from None
    check_tensors(folder, model)
    _check_target(save)
    try:
        tree = read_json(ds_config)
        tree = _with_model(tree, model, save)
    except ConfigError as error:
        raise ConfigError(f"{ds_config}: {error}") from None
    tree, paths = apply_overrides(tree, overrides)
    fixed = [name for name in MODEL_SIZES if f"{OUR_KEY}.model.{name}" in paths]
    if fixed:
        raise ConfigError(f"--model.{fixed[0]} cannot be set: {folder.path / CONFIG} says it. Remove it.")
    try:
        config = _with_samples(resolve(tree, _ranks(tree)))
        result = Import(folder, save, config, tree, _state(config))
    except ConfigError as error:
        raise ConfigError(f"{ds_config}: {error}") from None
    if result.config_path.exists():
        raise ConfigError(f"{result.config_path} is there already, of another run. Name another run directory.")
    return result


def run(job: Import, workers: int, progress: Callable[[str, int], None]) -> None:
    """Write the checkpoint and the JSON file.

    Args:
        job: from `plan_import`.
        workers: files written at a time.
        progress: told of each tensor's key and bytes, from other threads.

    Raises:
        ConfigError: a file of the folder cannot be read, or the output head is not the token table.
        ExchangeError: a file cannot be written.
    """
    check_head(job.folder)
    writing = job.save.with_name(job.save.name + layout.WRITING)
    try:
        stream.prepare(writing, _request(job))
        stream.write_all(job.tensors, writing, workers, progress)
        layout.write_json(writing / layout.STATE, job.state)
        layout.write_manifest(writing, stream.manifest_records(writing))
        part = job.config_path.with_name(job.config_path.name + stream.PART)
        layout.write_json(part, job.tree)
        os.replace(part, job.config_path)
        (writing / stream.REQUEST).unlink()
        layout.rename_complete(writing, job.save)
    except ConfigError:
        shutil.rmtree(writing, ignore_errors=True)
        raise
    except OSError as error:
        raise ExchangeError(
            f"{job.save} could not be written: {error}. The same command goes on from what is written."
        ) from None


def prefix_of(folder: ModelFolder) -> str:
    """In front of the names: files of GPT2Model, as the first releases, have none."""
    return PREFIX if WORDS in folder.entries else ""


def check_tensors(folder: ModelFolder, model: ModelConfig) -> None:
    """The folder must have the tensors of the model, in its shapes, and no others.

    Raises:
        ConfigError: naming the first that is missing, unknown or of another shape.
    """
    prefix = prefix_of(folder)
    wanted = {
        prefix + gpt2_name(name).removeprefix(PREFIX): gpt2_shape(name, model) for name in tensor_names(model)
    }
    for name, shape in wanted.items():
        if name not in folder.entries:
            raise ConfigError(f"{folder.path} has no tensor {name}, which {CONFIG} calls for. Copy the model again.")
        if folder.entries[name].shape != shape:
            found = list(folder.entries[name].shape)
            raise ConfigError(f"{folder.path}: {name} has shape {found}, but by {CONFIG} it must be {list(shape)}.")
    known = {*wanted, HEAD}
    more = [name for name in folder.entries if name not in known and not name.endswith(BUFFERS)]
    if more:
        raise ConfigError(
            f"{folder.path} has a tensor {show(more[0])}, which GPT-2's language model does not. A model with another "
            "head or adapters must be saved as a GPT2LMHeadModel first."
        )


def check_head(folder: ModelFolder) -> None:
    """An output head that is stored must be the token table, as the settings say it is."""
    if HEAD not in folder.entries:
        return
    words = prefix_of(folder) + WORDS.removeprefix(PREFIX)
    if not torch.equal(folder.tensor(HEAD), folder.tensor(words)):
        raise ConfigError(
            f"{folder.path}: {HEAD} is not {words}, although {CONFIG} says that they are tied. A model with an output "
            "head of its own cannot be trained here."
        )


def _with_model(tree: dict[str, Any], model: ModelConfig, save: Path) -> dict[str, Any]:
    """The file's tree with the sizes of the model and the directories of the new run."""
    ours = {name: require_object(value, name) for name, value in require_object(tree.get(OUR_KEY), OUR_KEY).items()}
    sizes = {name: getattr(model, name) for name in MODEL_SIZES}
    given = {name: value for name, value in ours.get("model", {}).items() if name not in MODEL_SIZES}
    ours["model"] = given | {name: value for name, value in sizes.items() if value is not None}
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


def _state(config: RunConfig) -> dict[str, Any]:
    return {
        "progress": Progress().to_json(),
        "plan": compile_plan(config).to_json(),
        "config": to_json(config),
        "optimizer_steps": None if config.optimizer.type == "SGD" else 0,
        "loss_scaler": None,
        "dataset": None,
        "stability": Stability().to_json(),
        "growth": None,
        "pacing": None,
    }


def _request(job: Import) -> dict[str, Any]:
    """What decides every byte of the tensors."""
    files = {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in job.folder.files}
    return {
        "load": str(job.folder.path.resolve()),
        "files": files,
        "model": job.config.model.model_dump(mode="json"),
        "kinds": list(job.tensors.kinds),
    }
