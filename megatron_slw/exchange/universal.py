"""DeepSpeed's universal checkpoint: a file for each tensor, which any of its layouts loads.

    FOLDER/latest_universal                            the name of the folder beside it
    FOLDER/global_step400_universal/
      mp_rank_00_model_states.pt                       counters; for ZeRO 3 again, zero_pp_rank_0_mp_rank_00_...
      zero/optimizer_state.pt                          parameter groups
      zero/NAME/{fp32,exp_avg,exp_avg_sq,step}.pt      a weight, its moments, the optimizer's step

As DeepSpeed 0.19.8 reads and writes it. The files are pickles; they are read with `weights_only`, which builds tensors,
numbers and strings and calls nothing else, and mapped, so that a file cannot make itself larger than it is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from megatron_slw.checkpoint import format as layout
from megatron_slw.config.errors import ConfigError, reason, show
from megatron_slw.config.schema import ModelConfig
from megatron_slw.exchange import gpt2
from megatron_slw.growth.operators import names
from megatron_slw.growth.stage import tensor_shape
from megatron_slw.growth.stream import PART
from megatron_slw.progress import INT64_MAX

LATEST, ZERO, OPTIMIZER = "latest_universal", "zero", "optimizer_state.pt"
COUNTERS = ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt")
"""The same twice: ZeRO 3 looks for the second."""
FILES = {"weight": "fp32.pt", "exp_avg": "exp_avg.pt", "exp_avg_sq": "exp_avg_sq.pt"}
"""By the kind of a tensor."""
STEP, PARAM, CAT_DIM = "step.pt", "param", "cat_dim"
Names = Literal["transformers", "megatron_slw"]
"""Whose names and shapes: those of GPT2LMHeadModel, or of the model here."""
_FOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


def their_name(name: str, style: Names) -> str:
    """What a tensor of ours is called."""
    return gpt2.gpt2_name(name) if style == "transformers" else name


def their_shape(name: str, model: ModelConfig, style: Names) -> tuple[int, ...]:
    """Its shape with them."""
    if style == "transformers":
        return gpt2.gpt2_shape(name, model)
    return tensor_shape(names.split_name(name)[1], model)


def content_of(name: str, tensor: Tensor, model: ModelConfig, style: Names) -> dict[str, Any]:
    """What a file of a tensor holds: the tensor and, where tensor-parallel ranks hold columns, that they do."""
    if style == "transformers":
        tensor = gpt2.to_gpt2(name, tensor, model)
        return {PARAM: torch.empty(tensor.shape).copy_(tensor)}  # torch.save would write all that a view is cut from
    module = names.split_name(name)[1].removesuffix(".weight")
    return {PARAM: tensor} | ({CAT_DIM: 1} if module in names.WRITERS else {})


def write_file(path: Path, value: object) -> None:
    """A file that is there is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + PART)
    torch.save(value, part)
    layout.sync(part)
    os.rename(part, path)


def read_file(path: Path) -> Any:
    """The value in a file; ConfigError where it is damaged, or holds more than tensors, numbers and strings."""
    if not path.is_file():
        raise ConfigError(f"{path} is not there: the universal checkpoint is not complete. Convert it again.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # of many kinds, by what is wrong in the file
        why = reason(error, 120)
        raise ConfigError(f"{path} is damaged, or holds more than tensors and numbers ({why}).") from None


def read_tensor(path: Path, shape: tuple[int, ...]) -> Tensor:
    """The fp32 tensor in a file; ConfigError where it is anything else, or of another shape."""
    value = read_file(path)
    tensor = value.get(PARAM) if isinstance(value, Mapping) else value
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.dtype != torch.float32:
        found = f"{tensor.dtype} tensor" if isinstance(tensor, Tensor) else type(tensor).__name__
        raise ConfigError(f"{path} holds a {found}, not an fp32 tensor.")
    if tuple(tensor.shape) != shape:
        raise ConfigError(
            f"{path} has shape {list(tensor.shape)}, but a model of these sizes needs {list(shape)}. Set model.* to "
            "the sizes of the model that was saved."
        )
    return tensor.contiguous()


def read_step(path: Path) -> int:
    """The optimizer's step."""
    value = read_file(path)
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if type(value) not in (int, float) or not 0 <= value <= INT64_MAX or value != int(value):
        raise ConfigError(f"{path} holds {show(str(value))}, not the number of a step.")
    return int(value)


def find_folder(load: Path) -> Path:
    """The folder with `zero` in it: the one given, or the one that its `latest_universal` names.

    Raises:
        ConfigError: there is none.
    """
    if not load.is_dir():
        raise ConfigError(f"{load} is not a folder. Give one that ds_to_universal wrote.")
    folder = load
    if (load / LATEST).is_file():
        with open(load / LATEST, encoding="utf-8", errors="replace") as file:
            name = file.read(300).strip()
        if not _FOLDER.fullmatch(name):
            raise ConfigError(f"{load / LATEST} says {show(name)}, which is not the name of a folder.")
        folder = load / name
    if not (folder / ZERO).is_dir():
        raise ConfigError(
            f"{folder} has no folder {ZERO}: it is not a universal checkpoint. Make one with python -m "
            "deepspeed.checkpoint.ds_to_universal."
        )
    return folder
