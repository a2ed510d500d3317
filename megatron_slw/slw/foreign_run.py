"""The same JSON for a loop with a model and data of its own: what shapes the lengths is read, the rest left alone."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_slw.config.curriculum import LEGACY_KEY, NEW_KEY, take_curricula
from megatron_slw.config.errors import ConfigError, require_known, require_object, validate
from megatron_slw.config.json_file import read_json
from megatron_slw.config.load import resolve
from megatron_slw.config.overrides import OUR_KEY, SECTIONS
from megatron_slw.config.schema import CurriculumConfig, ModelConfig, ParallelConfig, RunConfig, TrainingConfig
from megatron_slw.progress import whole_number

Source = str | Path | Mapping[str, Any]
"""A JSON file, or what it holds."""
IN_BATCH = ("seqlen_truncate", "seqlen_reshape")
"""Modes that need nothing but the batch at hand."""
UNKNOWN_LENGTH = 2**62


def foreign_run(
    source: Source, total_steps: int | None, seq_length: int | None, rows: int | None
) -> tuple[RunConfig, int | None]:
    """A run with the lengths of `source`, checked by the same rules as ours, and the rows of its batch if known.

    Everything that has no effect on the lengths (model, data, logging) is made up.

    Args:
        source: a whole configuration or a curriculum block.
        total_steps: optimizer steps; None takes the end that the training section has.
        seq_length: full length; None takes model.seq_length, or else max_difficulty.
        rows: of a global batch; None takes train_batch_size.

    Raises:
        ConfigError: with the file's path before it, if `source` is one.
    """
    if isinstance(source, Mapping):
        return _run(dict(source), total_steps, seq_length, rows)
    try:
        return _run(read_json(source), total_steps, seq_length, rows)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None


def _run(
    tree: dict[str, Any], total_steps: int | None, seq_length: int | None, rows: int | None
) -> tuple[RunConfig, int | None]:
    curricula = _curricula(tree)
    ours = require_object(tree.get(OUR_KEY) or {}, OUR_KEY)
    require_known(ours, SECTIONS, OUR_KEY)
    sections = {name: _given(ours, name) for name in ("model", "parallel", "training")}
    require_known(sections["model"], ModelConfig.model_fields, f"{OUR_KEY}.model")
    parallel = validate(ParallelConfig, sections["parallel"], f"{OUR_KEY}.parallel")
    training = validate(TrainingConfig, sections["training"], f"{OUR_KEY}.training")
    if rows is None and type(tree.get("train_batch_size")) is int:  # elsewhere it may be "auto"
        rows = tree["train_batch_size"]
    rows = rows if rows is None else whole_number(rows, "rows", least=1)
    end = {"train_steps": whole_number(total_steps, "total_steps", least=1)} if total_steps is not None else {}
    end = end or _end(training)
    full = seq_length if seq_length is not None else sections["model"].get("seq_length")
    full = _max_difficulty(curricula, rows or 1) if full is None else whole_number(full, "seq_length", least=1)
    made_up = {
        "train_batch_size": rows or 1,
        "optimizer": {"type": "AdamW", "params": {"lr": 1.0}},
        OUR_KEY: {
            "model": {
                "num_layers": 1,
                "hidden_size": parallel.tensor,
                "num_attention_heads": parallel.tensor,
                "seq_length": full,
            },
            "parallel": {"tensor": parallel.tensor, "sequence_parallel": parallel.sequence_parallel},
            "data": {"path": "none"},
            "training": end | {"lr_decay_style": "constant"},
            "evaluation": {"interval": 0},
            "logging": {"directory": "none"},
        },
    }
    config = resolve(curricula | made_up, parallel.tensor)
    _refuse(config, rows)
    return config, rows


def _curricula(tree: dict[str, Any]) -> dict[str, Any]:
    """The curriculum blocks of a configuration, or of one that is nothing else, under their outer keys."""
    if "curriculum_type" in tree:
        return {LEGACY_KEY: tree}
    if "curriculum_metrics" in tree:
        return {NEW_KEY: {"data_sampling": {"curriculum_learning": tree}}}
    if not {LEGACY_KEY, NEW_KEY, OUR_KEY} & set(tree):
        raise ConfigError(
            f"there is no curriculum: {NEW_KEY}, {LEGACY_KEY} or {OUR_KEY} must be there, or the curriculum's own keys."
        )
    return {name: tree[name] for name in (LEGACY_KEY, NEW_KEY) if tree.get(name) is not None}


def _given(ours: dict[str, Any], name: str) -> dict[str, Any]:
    section = require_object(ours.get(name) or {}, f"{OUR_KEY}.{name}")
    return {key: value for key, value in section.items() if value is not None}


def _end(training: TrainingConfig) -> dict[str, int]:
    names = ("train_tokens", "train_steps", "train_samples")
    ends = {name: getattr(training, name) for name in names if getattr(training, name) is not None}
    if not ends:
        raise ConfigError("total_steps must be given: the optimizer steps of the loop.")
    return ends


def _max_difficulty(curricula: dict[str, Any], rows: int) -> int:
    lengths = take_curricula(copy.deepcopy(curricula), UNKNOWN_LENGTH, rows).lengths
    if lengths is None or lengths.max_difficulty == UNKNOWN_LENGTH:
        raise ConfigError("seq_length must be given: there is neither a model.seq_length nor a max_difficulty.")
    return lengths.max_difficulty


def _refuse(config: RunConfig, rows: int | None) -> None:
    """What a loop with a data loader of its own cannot follow."""
    if config.batch_warmup is not None:
        raise ConfigError("the batch_size metric changes a step's rows, which the loop's loader decides. Remove it.")
    in_tokens = _in_tokens(config)
    if in_tokens and rows is None:
        raise ConfigError(f"{in_tokens} counts tokens: pass rows, the rows of a global batch.")
    curriculum = config.curriculum
    if curriculum is None:
        return
    if curriculum.schedule_type == "loss_adaptive":
        raise ConfigError(
            "schedule_type loss_adaptive decides by the losses of the run, so its lengths are no function of the step. "
            "Use fixed_linear, fixed_root, fixed_discrete, mixed or custom."
        )
    if curriculum.mode not in IN_BATCH:
        raise ConfigError(
            f"{curriculum.mode} brings back what was cut off, for which the loader must read samples again. Use "
            f"{' or '.join(IN_BATCH)}."
        )
    if in_tokens and curriculum.mode == "seqlen_reshape":
        raise ConfigError(
            f"{in_tokens} counts tokens, but a batch that is re-chunked trains all of its tokens at any length. Give "
            "steps or a fraction, and total_steps."
        )


def _in_tokens(config: RunConfig) -> str | None:
    """The first setting that makes the lengths depend on the tokens of a step; None without one."""
    curriculum: CurriculumConfig | None = config.curriculum
    names = ("total_curriculum_tokens", "max_tokens") if curriculum is not None else ()
    for name in names:
        if getattr(curriculum, name) is not None:
            return f"schedule_config.{name}"
    for name in ("train_tokens", "train_samples"):
        if getattr(config.training, name) is not None:
            return f"training.{name}"
    return None

