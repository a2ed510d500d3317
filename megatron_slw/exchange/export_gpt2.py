"""Write a checkpoint's model as a Hugging Face GPT-2 folder, tensor by tensor, in the memory of a few tensors."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_slw.checkpoint import format as layout
from megatron_slw.checkpoint.load import Checkpoint
from megatron_slw.config.errors import ConfigError
from megatron_slw.config.schema import ModelConfig
from megatron_slw.exchange.gpt2 import gpt2_settings, gpt2_shape, our_names, to_gpt2
from megatron_slw.exchange.model_folder import CONFIG, INDEX, WEIGHTS
from megatron_slw.exchange.new_run import ExchangeError
from megatron_slw.exchange.tokenizer_files import Files
from megatron_slw.growth import stream
from megatron_slw.growth.stage import TensorSource

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SHARD_BYTES = 5_000_000_000
_OURS = re.compile(rb'"load": "[0-9a-f]{64}"')


class GPT2Tensors:
    """A checkpoint's weights under their names and in their shapes.

    Args:
        source: weights by key, `weight/NAME`.
        model: its sizes.
        dtype: of what is given.
    """

    def __init__(self, source: TensorSource, model: ModelConfig, dtype: torch.dtype) -> None:
        self.source, self.model, self.dtype = source, model, dtype
        self.names = our_names(model)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of theirs and its shape."""
        return {theirs: gpt2_shape(ours, self.model) for theirs, ours in self.names.items()}

    def tensor(self, key: str) -> Tensor:
        """One of them; ConfigError where float16 cannot hold it."""
        tensor = to_gpt2(self.names[key], self.source.tensor(f"weight/{self.names[key]}"), self.model)
        if self.dtype == torch.float16 and tensor.abs().max() > torch.finfo(torch.float16).max:
            raise ConfigError(f"{key} has values beyond float16's 65504. Use --dtype bfloat16 or float32.")
        return tensor.to(self.dtype)


@dataclass(frozen=True)
class Export:
    """One export, worked out and checked; `run` carries it out."""

    checkpoint: Checkpoint
    save: Path
    dtype: str
    texts: Files
    """The small files: settings and tokenizer."""
    shard_bytes: int = SHARD_BYTES

    @cached_property
    def tensors(self) -> GPT2Tensors:
        """What is written."""
        return GPT2Tensors(self.checkpoint, self.checkpoint.config.model, DTYPES[self.dtype])

    @property
    def kind(self) -> stream.FileKind:
        """transformers reads no file without this metadata."""
        return stream.FileKind(DTYPES[self.dtype], {"format": "pt"})


def plan_export(
    checkpoint: Checkpoint,
    save: Path,
    dtype: str,
    tokenizer: tuple[Files, int, int | None],
    shard_bytes: int = SHARD_BYTES,
) -> Export:
    """Work out an export; nothing is written.

    Args:
        checkpoint: a complete one.
        save: the folder to be made.
        dtype: one of DTYPES.
        tokenizer: from `tokenizer_files`; no files, size 0 and None for none.
        shard_bytes: of a file of weights, at most.

    Raises:
        ConfigError: the folder is there already, or the tokenizer has ids that the model does not know.
    """
    files, size, eod_id = tokenizer
    model = checkpoint.config.model
    if size > (model.vocab_size or 0):
        raise ConfigError(
            f"the tokenizer has {size} ids, but {checkpoint} the model knows {model.vocab_size}: it is another one's. "
            "Give --dataset with a dataset that the model was trained on."
        )
    check_folder(save)
    settings = gpt2_settings(model, eod_id, dtype)
    generation = {"_from_model_config": True, "bos_token_id": eod_id, "eos_token_id": eod_id}
    texts = {**files, CONFIG: as_json(settings), "generation_config.json": as_json(generation)}
    return Export(checkpoint, save, dtype, texts, shard_bytes)


def run(export: Export, workers: int, progress: Callable[[str, int], None]) -> None:
    """Check the checkpoint's files, write the folder, give it its name.

    Args:
        export: from `plan_export`.
        workers: files read and written at a time.
        progress: told of each tensor's name and bytes, from other threads.

    Raises:
        ConfigError: a file of the checkpoint is damaged.
        ExchangeError: a file cannot be written.
    """
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(lambda share: export.checkpoint.verify(share, workers), range(workers)))
    writing = export.save.with_name(export.save.name + layout.WRITING)
    shapes = export.tensors.shapes
    files = _named(stream.split_files(shapes, export.shard_bytes, export.kind))
    try:
        stream.prepare(writing, _request(export))
        stream.write_files(export.tensors, writing, files, export.kind, workers, progress)
        for name, content in (export.texts | _index(files, export)).items():
            (writing / name).write_bytes(content)
            layout.sync(writing / name)
        give_name(writing, export.save)
    except ConfigError:
        shutil.rmtree(writing, ignore_errors=True)
        raise
    except OSError as error:
        raise ExchangeError(
            f"{export.save} could not be written: {error}. The same command goes on from what is written."
        ) from None


def give_name(writing: Path, save: Path) -> None:
    """End an export. The request goes last: a kill before leaves a whole folder, and `check_folder` removes it."""
    layout.sync(writing)
    os.rename(writing, save)
    layout.sync(save.parent)
    (save / stream.REQUEST).unlink()


def check_folder(save: Path) -> None:
    """Refuse to write over anything, and to take for our own an unfinished folder that is not."""
    if save.exists():
        request = save / stream.REQUEST
        if request.is_file() and _OURS.search(request.read_bytes()[:4096]):
            request.unlink()
        raise ConfigError(f"--save {save} is there already. Delete it, or name another folder.")
    writing = save.with_name(save.name + layout.WRITING)
    if writing.exists() and not (writing / stream.REQUEST).is_file():
        raise ConfigError(f"{writing} is in the way: the export is made there. Delete it, or name another --save.")


def as_json(value: dict[str, Any]) -> bytes:
    """As transformers writes it."""
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def _named(files: list[list[str]]) -> dict[str, list[str]]:
    if len(files) == 1:
        return {WEIGHTS: files[0]}
    return {f"model-{i:05d}-of-{len(files):05d}.safetensors": keys for i, keys in enumerate(files, 1)}


def _index(files: dict[str, list[str]], export: Export) -> Files:
    """What says which file a tensor lies in, where there are several."""
    if len(files) == 1:
        return {}
    shapes = export.tensors.shapes
    total = sum(prod(shape) for shape in shapes.values())
    metadata = {"total_parameters": total, "total_size": total * export.kind.dtype.itemsize}
    table = {key: name for name, keys in files.items() for key in keys}
    return {INDEX: as_json({"metadata": metadata, "weight_map": table})}


def _request(export: Export) -> dict[str, Any]:
    """What decides every byte of the weights."""
    manifest = (export.checkpoint.path / layout.MANIFEST).read_bytes()
    return {
        "load": hashlib.sha256(manifest).hexdigest(),
        "dtype": export.dtype,
        "shard_bytes": export.shard_bytes,
    }
