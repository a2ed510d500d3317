"""STAGES.json: a run in stages, read and checked before anything is started.

    {"ds_config": "ds_small.json", "directory": "runs/staged",
     "stages": [{"until": "auto"},
                {"grow": {"width": 2}, "set": {"optimizer.params.lr": 2e-3}, "until": {"step": 9000}},
                {"grow": {"depth": 2}}]}

The first stage is the run that ds_config describes. Each later one grows the last checkpoint of the stage before;
"grow" has the flags of tools/grow_checkpoint.py. "set" overrides settings from this stage on.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_slw.config.errors import ConfigError, join_path, require_known, require_object, show
from megatron_slw.config.json_file import read_json
from megatron_slw.config.load import load_config
from megatron_slw.config.schema import ModelConfig, RunConfig
from megatron_slw.growth import flags
from megatron_slw.growth.derive import MODEL_SIZES
from megatron_slw.growth.planner.plan import growth_slope
from megatron_slw.growth.sizes import Sizes, grown_sizes

GROW_FLAGS = (
    "depth", "layers", "width", "hidden_size", "heads", "ffn", "vocab_size", "seq_length", "operator", "depth_operator",
    "placement", "noise", "dynamics", "position", "rewarmup_steps", "seed", "data", "verify",
)  # fmt: skip
UNTIL = ("step", "tokens")


@dataclass(frozen=True)
class Stage:
    """One stage."""

    directory: Path
    """Its run directory."""
    config: RunConfig
    """As far as it is known before the data is opened."""
    overrides: tuple[str, ...]
    """Of its own run, what stops it included."""
    grow: tuple[str, ...]
    """Flags of grow_checkpoint.py, but --load and --save; empty for the first."""
    step: int | None
    """Where it ends, on the clock of its run; this, `tokens`, the growth point or the end of its plan."""
    tokens: int | None
    is_auto: bool
    """Whether it ends at its growth point."""


@dataclass(frozen=True)
class StagedRun:
    """All of it."""

    ds_config: Path
    """Of the first stage."""
    directory: Path
    stages: tuple[Stage, ...]


def read_stages(path: Path, world_size: int = 1) -> StagedRun:
    """The staged run that the file at `path` describes on `world_size` ranks.

    Raises:
        ConfigError: anything wrong in it, in the configuration, or in how they go together.
    """
    try:
        tree = read_json(path)
        require_known(tree, ("ds_config", "directory", "stages"), "")
        for name in ("ds_config", "directory"):
            if not isinstance(tree.get(name), str) or not tree[name]:
                raise ConfigError(f"{name} must be a path, not {show(tree.get(name))}.")
        blocks = tree.get("stages")
        if not isinstance(blocks, list) or not blocks:
            raise ConfigError(f"stages must be a list of stages, not {show(blocks)}.")
        blocks = [require_object(block, f"stages[{i}]") for i, block in enumerate(blocks)]
        for i, block in enumerate(blocks):
            require_known(block, ("grow", "set", "until"), f"stages[{i}]")
            if ("grow" in block) != (i > 0):
                rule = "given" if i else "left out"
                raise ConfigError(f"stages[{i}].grow must be {rule}: every stage grows from the one before it.")
            if "until" in block and i == len(blocks) - 1 and block["until"] == "auto":
                raise ConfigError(f"stages[{i}].until cannot be auto: nothing follows to grow to.")
        grow = [_grow_flags(block.get("grow", {}), f"stages[{i}].grow") for i, block in enumerate(blocks)]
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    ds_config = path.parent / tree["ds_config"]
    return StagedRun(ds_config, Path(tree["directory"]), _stages(path, tree, blocks, grow, ds_config, world_size))


def _stages(
    path: Path,
    tree: dict[str, Any],
    blocks: Sequence[dict[str, Any]],
    grow: Sequence[tuple[str, ...]],
    ds_config: Path,
    world_size: int,
) -> tuple[Stage, ...]:
    settings: dict[str, str] = {}
    stages: list[Stage] = []
    model: ModelConfig | None = None
    sizes: list[str] = []
    for i, block in enumerate(blocks):
        where = f"{path}: stages[{i}]"
        own = _settings(block.get("set", {}), where)
        settings |= own
        directory = Path(tree["directory"]) / f"stage_{i + 1}"
        try:
            if model is not None:
                model = _grown(model, grow[i])
                sizes = [f"--model.{name}={json.dumps(getattr(model, name))}" for name in MODEL_SIZES]
        except ConfigError as error:
            raise ConfigError(f"{where}.grow: {error}") from None
        is_auto, step, tokens = _until(block.get("until"), f"{where}.until")
        own |= {
            "logging.directory": json.dumps(str(directory)),
            "checkpoint.directory": "null",
            "training.grow_when": '"auto"' if is_auto else "null",
        }
        config = load_config(ds_config, [f"--{k}={v}" for k, v in (settings | own).items()] + sizes, world_size)
        model = config.model
        if is_auto:
            slope = settings.get("training.grow_slope", _slope(model, grow[i + 1]))
            own["training.grow_slope"] = str(slope)
        overrides = [f"--{name}={value}" for name, value in own.items()]
        stages.append(Stage(directory, config, tuple(overrides), grow[i], step, tokens, is_auto))
    return tuple(stages)


def _settings(block: Any, where: str) -> dict[str, str]:
    values = require_object(block, f"{where}.set")
    for name in values:
        if name in ("logging.directory", "checkpoint.directory", "checkpoint.load", "training.grow_when"):
            raise ConfigError(f"{where}.set: {name} is what the stages decide: leave it out.")
    return {name: json.dumps(value) for name, value in values.items()}


def _until(value: Any, where: str) -> tuple[bool, int | None, int | None]:
    """Whether the stage ends at its growth point; its last step; its tokens."""
    if value is None or value == "auto":
        return value == "auto", None, None
    if not isinstance(value, dict) or len(value) != 1:
        raise ConfigError(f'{where} must be "auto", {{"step": N}} or {{"tokens": N}}, not {show(value)}.')
    require_known(value, UNTIL, where)
    ((name, number),) = value.items()
    if type(number) is not int or number < 1:
        raise ConfigError(f"{join_path(where, name)} must be an integer greater than 0, not {show(number)}.")
    return False, number if name == "step" else None, number if name == "tokens" else None


def _grow_flags(block: Any, where: str) -> tuple[str, ...]:
    values = require_object(block, where)
    require_known(values, GROW_FLAGS, where)
    found: list[str] = []
    for name, value in values.items():
        flag = f"--{name.replace('_', '-')}"
        if name == "verify" and type(value) is bool:
            found.append(flag if value else "--no-verify")
        elif isinstance(value, str) or type(value) in (int, float):
            found.append(f"{flag}={value}")
        else:
            raise ConfigError(f"{join_path(where, name)} must be a number or a text, not {show(value)}.")
    if values:
        parse_growth(["--load=x", "--save=x", *found], where)
    return tuple(found)


def parse_growth(argv: Sequence[str], where: str) -> flags.Command:
    """grow_checkpoint.py's own reading of its flags, with its complaint as a ConfigError."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return flags.parse(argv, "")
    except SystemExit:
        text = complaint.getvalue().strip().splitlines()[-1].partition("error: ")[2]
        raise ConfigError(f"{where}: {text}.") from None


def _grown(model: ModelConfig, grow: Sequence[str]) -> ModelConfig:
    (own,) = parse_growth(["--load=x", "--save=x", *grow], "").stages
    wanted = (own.depth, own.layers, own.width, own.hidden_size, own.heads, own.ffn, own.vocab_size, own.seq_length)
    return grown_sizes(model, Sizes(*wanted))


def _slope(model: ModelConfig, grow: Sequence[str]) -> float:
    large = _grown(model, grow)
    return growth_slope(large.num_layers / model.num_layers, large.hidden_size / model.hidden_size)
