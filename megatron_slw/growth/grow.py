"""Grow a checkpoint on disk: plan, stream, verify, commit."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatron_slw.checkpoint import format as layout
from megatron_slw.checkpoint.load import Checkpoint
from megatron_slw.config.errors import ConfigError
from megatron_slw.data.blend import open_samples, parts_of
from megatron_slw.growth import stream
from megatron_slw.growth.derive import GrownRun, Options, derive, run_directory
from megatron_slw.growth.operators.depth import LOSSLESS
from megatron_slw.growth.stage import GrownTensors, Stage, TensorSource
from megatron_slw.growth.verify import Comparison, compare

CONFIG_FILE = "ds_config.json"
VERIFY_ROWS, VERIFY_LENGTH = 2, 256


class GrowthError(RuntimeError):
    """The grown model does not compute what the old one did, or it could not be written; nothing is left behind."""


@dataclass(frozen=True)
class Growth:
    """One growth, worked out and checked; `run` carries it out."""

    checkpoint: Checkpoint
    stages: tuple[Stage, ...]
    options: Options
    grown: GrownRun
    save: Path
    tokens: torch.Tensor | None
    """Token ids (B, T + 1) to verify on; None to verify nothing."""

    @property
    def tensors(self) -> TensorSource:
        """The grown model's."""
        source: TensorSource = self.checkpoint
        sizes = self.checkpoint.config.model
        for stage, factors in zip(self.stages, self.grown.stage_multipliers, strict=True):
            source = GrownTensors(source, sizes, stage, self.options.seed, factors)
            sizes = stage.model
        return source

    @property
    def is_lossless(self) -> bool:
        """Whether every stage claims to preserve the logits."""
        sizes = self.checkpoint.config.model
        claims = []
        for stage in self.stages:
            claims.append(stage.model.num_layers == sizes.num_layers or stage.depth_operator in LOSSLESS)
            sizes = stage.model
        return all(claims)


def plan_growth(
    load: Path,
    stages: Sequence[Stage],
    save: Path,
    options: Options,
    overrides: Sequence[str] = (),
    verify_on: str | None = None,
) -> Growth:
    """Read the old checkpoint's description and work out the grown run; nothing is written.

    Args:
        load: a complete checkpoint.
        stages: from `sizes.grown_sizes`, in order.
        save: where the grown one goes, `.../step_NNNNNN`.
        options: of the dynamics.
        overrides: settings of the grown run.
        verify_on: prefix of the dataset to verify on; None takes the old run's, "" verifies nothing.

    Raises:
        ConfigError: anything that does not fit.
    """
    checkpoint = Checkpoint(load)
    _check_target(checkpoint, save)
    grown = derive(checkpoint, stages, save, options, overrides)
    tokens = None if verify_on == "" else real_tokens(checkpoint, verify_on)
    growth = Growth(checkpoint, tuple(stages), options, grown, save, tokens)
    path = config_path(growth)
    if path.exists() and path.read_text(encoding="utf-8") != json.dumps(grown.tree, indent=1):
        raise ConfigError(f"{path} is there already, of another run. Delete it, or name another run directory.")
    return growth


def run(growth: Growth, workers: int, progress: Callable[[str, int], None]) -> Comparison | None:
    """Write, verify and commit the grown checkpoint and its configuration file.

    Args:
        growth: from `plan_growth`.
        workers: files read, grown and written at a time.
        progress: told of each tensor's key and bytes as it is written, from other threads.

    Returns:
        Both models' losses, unless nothing is verified.

    Raises:
        ConfigError: a file of the old checkpoint is damaged.
        GrowthError: the losses differ by more than rounding, or a file cannot be written.
    """
    writing = growth.save.with_name(growth.save.name + layout.WRITING)
    try:
        stream.prepare(writing, _request(growth))
        with ThreadPoolExecutor(1) as pool:  # beside the writing, which waits for the disk
            sound = pool.submit(growth.checkpoint.verify)
            stream.write_all(growth.tensors, writing, workers, progress)
            sound.result()
        layout.write_json(writing / layout.STATE, growth.grown.state.to_json())
        layout.write_manifest(writing, stream.manifest_records(writing))
    except ConfigError:
        shutil.rmtree(writing, ignore_errors=True)
        raise
    except OSError as error:
        raise GrowthError(
            f"{growth.save} could not be written: {error}. The same command goes on from what is written."
        ) from None
    result = _verified(growth, writing)
    _write_config(growth)
    (writing / stream.REQUEST).unlink()
    layout.rename_complete(writing, growth.save)
    return result


def real_tokens(checkpoint: Checkpoint, prefix: str | None) -> torch.Tensor:
    """The first windows of the run's training text, or of another dataset's: (B, T + 1) ids."""
    config = checkpoint.config
    data = config.data if prefix is None else config.data.model_copy(update={"path": prefix, "valid_path": None})
    length = config.model.seq_length
    try:
        windows = parts_of(open_samples(data, length, "train"))[0]
    except ConfigError as error:
        raise ConfigError(f"there is nothing to verify on: {error} Or give --data PREFIX, or --no-verify.") from None
    rows = min(VERIFY_ROWS, len(windows))
    ids = windows.gather(np.arange(rows), min(length, VERIFY_LENGTH)).astype(np.int64)
    vocab = config.model.vocab_size or 0
    if int(ids.max()) >= vocab:
        raise ConfigError(
            f"{windows.dataset.prefix} has the token {int(ids.max())}, but the model knows {vocab}. Give --data with a "
            "dataset of its tokenizer."
        )
    return torch.from_numpy(ids)


def _check_target(checkpoint: Checkpoint, save: Path) -> None:
    if not layout.is_step_name(save.name):
        example = layout.step_folder(save, checkpoint.progress.step)
        raise ConfigError(f"--save {save} must end in step_NNNNNN, so that a run finds it. Use {example}.")
    if save.exists():
        raise ConfigError(f"--save {save} is there already. Delete it, or name another.")
    others = layout.complete_checkpoints(save.parent)
    if others:
        raise ConfigError(
            f"--save {save}: {save.parent} has checkpoints of another run ({others[-1].name}). Name a new run "
            "directory, like runs/large/checkpoints/" + save.name + "."
        )


def _verified(growth: Growth, writing: Path) -> Comparison | None:
    """Both losses; what does not verify is removed."""
    if growth.tokens is None:
        return None
    old, new = growth.checkpoint.config.model, growth.grown.config.model
    result = compare(growth.checkpoint, old, Checkpoint(writing), new, growth.tokens)
    if growth.is_lossless and not result.equal:
        shutil.rmtree(writing, ignore_errors=True)
        raise GrowthError(
            f"the grown model is not the old one: loss {result.before:.6f} before, {result.after:.6f} after, logits "
            f"differ by up to {result.largest_difference:.2e} of {result.largest_logit:.2e}. Nothing was kept."
        )
    return result


def _request(growth: Growth) -> dict[str, Any]:
    """What decides every byte of the grown tensors."""
    manifest = (growth.checkpoint.path / layout.MANIFEST).read_bytes()
    return {
        "load": hashlib.sha256(manifest).hexdigest(),
        "stages": [asdict(stage) | {"model": stage.model.model_dump(mode="json")} for stage in growth.stages],
        "multipliers": [
            {family: factor.to_json() for family, factor in stage.items()} for stage in growth.grown.stage_multipliers
        ],
        "seed": growth.options.seed,
        "torch": torch.__version__,
        "files": stream.split_files(growth.tensors.shapes),
    }


def _write_config(growth: Growth) -> None:
    """The JSON file that `pretrain_gpt.py --ds-config` goes on with."""
    path = config_path(growth)
    part = path.with_name(path.name + stream.PART)
    layout.write_json(part, growth.grown.tree)
    os.replace(part, path)


def config_path(growth: Growth) -> Path:
    """Where the configuration of the grown run is written."""
    return run_directory(growth.save) / CONFIG_FILE
