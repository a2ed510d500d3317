"""Make a checkpoint of step 0 from DeepSpeed's universal one: weights, moments and the optimizer's step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from megatron_slw.config.errors import ConfigError
from megatron_slw.config.schema import ModelConfig
from megatron_slw.exchange import universal
from megatron_slw.exchange.gpt2 import from_gpt2
from megatron_slw.exchange.new_run import NewRun, plan_run, write
from megatron_slw.growth.operators import names
from megatron_slw.growth.stage import tensor_names, tensor_shape
from megatron_slw.train.optim import state_names


class UniversalTensors:
    """A universal checkpoint's tensors under our names.

    Args:
        folder: with `zero` in it.
        model: its sizes.
        style: whose names and shapes it has.
        kinds: weight, and what the optimizer keeps for each.
    """

    def __init__(self, folder: Path, model: ModelConfig, style: universal.Names, kinds: Sequence[str]) -> None:
        self.folder, self.model, self.style, self.kinds = folder, model, style, kinds

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every key of the checkpoint and its shape."""
        return {
            f"{kind}/{name}": tensor_shape(names.split_name(name)[1], self.model)
            for name in tensor_names(self.model)
            for kind in self.kinds
        }

    def path(self, key: str) -> Path:
        """The file of one of them."""
        kind, _, name = key.partition("/")
        return self.folder / universal.ZERO / universal.their_name(name, self.style) / universal.FILES[kind]

    def tensor(self, key: str) -> Tensor:
        """One of them, fp32."""
        name = key.partition("/")[2]
        tensor = universal.read_tensor(self.path(key), universal.their_shape(name, self.model, self.style))
        return from_gpt2(name, tensor, self.model) if self.style == "transformers" else tensor


@dataclass(frozen=True)
class UniversalImport:
    """One import, worked out and checked; `run` carries it out."""

    tensors: UniversalTensors
    new_run: NewRun


def plan_import(load: str, save: Path, ds_config: str, overrides: Sequence[str]) -> UniversalImport:
    """Find the tensors and resolve the run that begins with them; nothing is written.

    Args:
        load: a folder with `latest_universal`, or the one that it names.
        save: where the checkpoint goes, `.../step_000000`.
        ds_config: JSON file of the run, the sizes of the model among its settings.
        overrides: settings put over the file's.

    Raises:
        ConfigError: it is no universal checkpoint, or not of such a model, or the settings do not fit.
    """
    folder = universal.find_folder(Path(load))
    style = _style(folder)
    first = folder / universal.ZERO / universal.their_name(names.WORDS, style)
    steps = universal.read_step(first / universal.STEP)
    new_run = plan_run(save, ds_config, overrides, optimizer_steps=steps)
    config = new_run.config
    if config.optimizer.type not in ("Adam", "AdamW"):
        kind = config.optimizer.type
        raise ConfigError(f"optimizer.type is {kind}, but {folder} has the moments of Adam. Use AdamW.")
    tensors = UniversalTensors(folder, config.model, style, ("weight", *state_names(config.optimizer)))
    _check_tensors(tensors)
    return UniversalImport(tensors, new_run)


def run(job: UniversalImport, workers: int, progress: Callable[[str, int], None]) -> None:
    """Write the checkpoint and the JSON file; raises as `new_run.write` does."""
    write(job.new_run, job.tensors, _request(job), workers, progress)


def _style(folder: Path) -> universal.Names:
    styles: tuple[universal.Names, ...] = ("transformers", "megatron_slw")
    for style in styles:
        if (folder / universal.ZERO / universal.their_name(names.WORDS, style)).is_dir():
            return style
    wanted = " nor ".join(universal.their_name(names.WORDS, style) for style in styles)
    raise ConfigError(f"{folder / universal.ZERO} has neither {wanted}: it is of another model than GPT-2.")


def _check_tensors(tensors: UniversalTensors) -> None:
    """Every file is there and of its size, before the first is written; a layer too many is another model."""
    for key in tensors.shapes:
        path = tensors.path(key)
        if not path.is_file():
            raise ConfigError(f"{path} is not there. Set model.* to the sizes of the model that was saved.")
    beyond = names.layer_name(tensors.model.num_layers, "input_layernorm.weight")
    if tensors.path(f"weight/{beyond}").is_file():
        raise ConfigError(
            f"{tensors.folder} has more than the {tensors.model.num_layers} layers of model.num_layers. Raise it."
        )


def _request(job: UniversalImport) -> dict[str, Any]:
    """What decides every byte of the tensors."""
    times = [job.tensors.path(key).stat().st_mtime_ns for key in job.tensors.shapes]
    return {
        "load": str(job.tensors.folder.resolve()),
        "times": times,
        "model": job.new_run.config.model.model_dump(mode="json"),
    }
