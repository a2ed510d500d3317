"""Make a checkpoint of step 0 from a Hugging Face GPT-2 folder: its weights, an optimizer that has not stepped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_slw.config.errors import ConfigError, show
from megatron_slw.config.schema import ModelConfig
from megatron_slw.exchange.gpt2 import HEAD, PREFIX, WORDS, from_gpt2, gpt2_name, gpt2_shape, model_of
from megatron_slw.exchange.model_folder import CONFIG, ModelFolder
from megatron_slw.exchange.new_run import NewRun, plan_run, write
from megatron_slw.exchange.tokenizer_files import check_dataset
from megatron_slw.growth.operators.names import split_name
from megatron_slw.growth.stage import tensor_names, tensor_shape
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
    new_run: NewRun

    @cached_property
    def tensors(self) -> TrainingTensors:
        """What is written."""
        config = self.new_run.config
        return TrainingTensors(self.folder, config.model, state_names(config.optimizer))


def plan_import(load: str, save: Path, ds_config: str, overrides: Sequence[str]) -> Import:
    """Read the folder's description and resolve the run that begins with it; nothing is written.

    Args:
        load: a folder with config.json and safetensors.
        save: where the checkpoint goes, `.../step_000000`.
        ds_config: JSON file of the run: everything but the model's sizes.
        overrides: settings of the run, put over the file's.

    Raises:
        ConfigError: it is no GPT-2 that can be trained here, or the run's settings or data do not fit it.
    """
    folder = ModelFolder(load)
    try:
        model = model_of(folder.settings)
    except ConfigError as error:
        raise ConfigError(f"{folder.path / CONFIG}: {error}") from None
    check_tensors(folder, model)
    new_run = plan_run(save, ds_config, overrides, model)
    for corpus in new_run.config.data.corpora:
        check_dataset(corpus.prefix, folder.path)
    return Import(folder, new_run)


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
    write(job.new_run, job.tensors, _request(job), workers, progress)


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


def _request(job: Import) -> dict[str, Any]:
    """What decides every byte of the tensors."""
    files = {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in job.folder.files}
    return {
        "load": str(job.folder.path.resolve()),
        "files": files,
        "model": job.new_run.config.model.model_dump(mode="json"),
        "kinds": list(job.tensors.kinds),
    }
