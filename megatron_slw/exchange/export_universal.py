"""Write a checkpoint as DeepSpeed's universal one, tensor by tensor."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from megatron_slw.checkpoint import format as layout
from megatron_slw.checkpoint.load import Checkpoint
from megatron_slw.config.errors import ConfigError
from megatron_slw.exchange import universal
from megatron_slw.exchange.export_gpt2 import check_folder, give_name
from megatron_slw.exchange.new_run import ExchangeError
from megatron_slw.growth import stream
from megatron_slw.growth.stage import tensor_names

DEEPSPEED = "0.19.8"
GROUPS = 16
"""More than an engine has. DeepSpeed restores as many groups as both sides have, and of each the settings that are
stored: none, so the engine's own rate and weight decay stay."""


@dataclass(frozen=True)
class UniversalExport:
    """One export, checked; `run` carries it out."""

    checkpoint: Checkpoint
    save: Path
    names: universal.Names

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor that is written, by its key, `exp_avg/NAME`."""
        model = self.checkpoint.config.model
        return {
            f"{kind}/{name}": universal.their_shape(name, model, self.names)
            for name in tensor_names(model)
            for kind in universal.FILES
        }


def plan_export(checkpoint: Checkpoint, save: Path, names: universal.Names) -> UniversalExport:
    """Check that there is something to write, and a place for it; nothing is written.

    Raises:
        ConfigError: the optimizer is not Adam or AdamW, or the folder is there already.
    """
    if checkpoint.config.optimizer.type not in ("Adam", "AdamW"):
        raise ConfigError(
            f"{checkpoint} it was trained with {checkpoint.config.optimizer.type}, but a universal checkpoint holds "
            "the state of Adam or AdamW. Export the weights alone with export_hf.py."
        )
    check_folder(save)
    return UniversalExport(checkpoint, save, names)


def run(export: UniversalExport, workers: int, progress: Callable[[str, int], None]) -> None:
    """Check the checkpoint's files, write the folder, give it its name.

    Args:
        export: from `plan_export`.
        workers: files read and written at a time.
        progress: told of each tensor's key and bytes, from other threads.

    Raises:
        ConfigError: a file of the checkpoint is damaged.
        ExchangeError: a file cannot be written.
    """
    checkpoint, model = export.checkpoint, export.checkpoint.config.model
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(lambda share: checkpoint.verify(share, workers), range(workers)))
    writing = export.save.with_name(export.save.name + layout.WRITING)
    folder = writing / f"global_step{checkpoint.progress.step}_universal"
    shapes = export.shapes

    def write(key: str) -> None:
        kind, _, name = key.partition("/")
        path = folder / universal.ZERO / universal.their_name(name, export.names) / universal.FILES[kind]
        if not path.is_file():
            tensor = checkpoint.tensor(key)
            universal.write_file(path, universal.content_of(name, tensor, model, export.names))
        progress(key, 4 * prod(shapes[key]))

    try:
        stream.prepare(writing, _request(export))
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(write, shapes))
        for path, value in _small_files(export, folder):
            universal.write_file(path, value)
        (writing / universal.LATEST).write_text(folder.name, encoding="utf-8")
        for path in (writing / universal.LATEST, folder):
            layout.sync(path)
        give_name(writing, export.save)
    except OSError as error:
        raise ExchangeError(
            f"{export.save} could not be written: {error}. The same command goes on from what is written."
        ) from None


def _small_files(export: UniversalExport, folder: Path) -> Iterator[tuple[Path, Any]]:
    """The step of every tensor, the parameter groups and the counters."""
    checkpoint = export.checkpoint
    steps = torch.tensor(float(checkpoint.optimizer_steps or 0))
    for name in tensor_names(checkpoint.config.model):
        yield folder / universal.ZERO / universal.their_name(name, export.names) / universal.STEP, steps
    groups: list[dict[str, list[int]]] = [{"params": []} for _ in range(GROUPS)]
    optimizer = {  # ZeRO 3 looks for groups and step one level below
        "param_groups": groups,
        "optimizer_state_dict": {"param_groups": groups[:1], "state": {0: {"step": steps}}},
        "ds_version": DEEPSPEED,
    }
    yield folder / universal.ZERO / universal.OPTIMIZER, optimizer
    progress = checkpoint.progress
    counters = {
        "module": {}, "dp_world_size": 1, "mp_world_size": 1, "global_steps": progress.step,
        "global_samples": progress.samples, "skipped_steps": 0, "ds_version": DEEPSPEED,
        "megatron_slw": {"progress": progress.to_json()},
    }  # fmt: skip
    for file in universal.COUNTERS:
        yield folder / file, counters


def _request(export: UniversalExport) -> dict[str, Any]:
    """What decides every byte of the tensors."""
    manifest = (export.checkpoint.path / layout.MANIFEST).read_bytes()
    return {"load": hashlib.sha256(manifest).hexdigest(), "names": export.names, "torch": torch.__version__}
