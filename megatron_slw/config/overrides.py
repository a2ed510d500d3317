"""Dotted settings from the command line, put over what the file says: `--model.num_layers=24`."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from megatron_slw.config.curriculum import BATCH_MODE, LEGACY_KEY, NEW_FORM_PATH, SCHEDULE_KEYS
from megatron_slw.config.errors import ConfigError, show, unknown_name
from megatron_slw.config.json_file import parse_json

OUR_KEY = "megatron_slw"
SECTIONS = ("model", "parallel", "data", "training", "evaluation", "checkpoint", "logging", "ops")


def apply_overrides(tree: dict[str, Any], overrides: Sequence[str]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A copy of the file's `tree` with the `overrides` set in their order, and the dotted paths set.

    An override is `path=value`, with or without leading dashes, or `--path` followed by its value as the next
    item. The value is read as JSON, or as a string where it is not JSON. A path whose first name is one of
    our SECTIONS stands inside `megatron_slw`; `curriculum.<name>` goes to whichever curriculum block the file
    has; any other path starts at the top level, among DeepSpeed's keys.

    Raises:
        ConfigError: an override without a value, or a path through something that is not an object.
    """
    tree = copy.deepcopy(tree)
    paths = []
    items = list(overrides)
    while items:
        item = items.pop(0)
        name, equals, text = item.lstrip("-").partition("=")
        if not equals:
            if not item.startswith("--") or not items or items[0].startswith("--"):
                raise ConfigError(f"{show(item)} has no value: write --{name or 'path'}=value.")
            text = items.pop(0)
        parts = name.split(".")
        if not all(parts):
            raise ConfigError(
                f"{show(item)} has no setting's name before the equals sign, like --model.num_layers=24."
            )
        full = _locate(tree, parts)
        _set(tree, full, _value(text, name), name)
        paths.append(".".join(full))
    return tree, tuple(paths)


def _value(text: str, name: str) -> Any:
    try:
        return parse_json(text)
    except ConfigError as error:
        if text[:1] in "{[" and text:  # meant as JSON: a string would only be refused later, less clearly
            raise ConfigError(f"the value of --{name} {error}") from None
        return text


def _locate(tree: dict[str, Any], parts: list[str]) -> list[str]:
    """The full path in the file's tree that the user's dotted `parts` mean."""
    if parts[0] in SECTIONS:
        return [OUR_KEY, *parts]
    if parts[0] == "curriculum":
        return _locate_curriculum(tree, parts)
    return parts


def _locate_curriculum(tree: dict[str, Any], parts: list[str]) -> list[str]:
    path = ".".join(parts)
    if len(parts) != 2:
        raise ConfigError(
            f"{path} is not a setting: write curriculum.<name>=value, like curriculum.min_difficulty=8."
        )
    name = parts[1]
    block_names = ("enabled", "preset", "min_difficulty", "max_difficulty", "schedule_type")
    if name not in (*block_names, *SCHEDULE_KEYS):
        raise ConfigError(unknown_name("curriculum", name, (*block_names, *SCHEDULE_KEYS)))
    inside = [name] if name in block_names else ["schedule_config", name]
    if tree.get(LEGACY_KEY) is not None:
        return [LEGACY_KEY, *inside]
    block: Any = tree
    for key in NEW_FORM_PATH:
        block = block.get(key) if isinstance(block, dict) else None
    if not isinstance(block, dict):
        raise ConfigError(
            f"{path} cannot be set: the file has no curriculum block. Add {'.'.join(NEW_FORM_PATH)}."
        )
    if name == "enabled":
        return [*NEW_FORM_PATH, name]
    metrics = block.get("curriculum_metrics")
    metrics = list(metrics) if isinstance(metrics, dict) else []
    if len(metrics) == 2 and BATCH_MODE in metrics:  # beside a batch-size warmup the lengths are meant
        metrics.remove(BATCH_MODE)
    if len(metrics) != 1:
        raise ConfigError(
            f"{path} cannot be set: curriculum_metrics must hold one metric, it holds {len(metrics)}."
        )
    return [*NEW_FORM_PATH, "curriculum_metrics", *metrics, *inside]


def _set(tree: dict[str, Any], path: list[str], value: Any, name: str) -> None:
    block = tree
    for depth, key in enumerate(path[:-1]):
        if block.get(key) is None:
            block[key] = {}
        if not isinstance(block[key], dict):
            found = f"{'.'.join(path[: depth + 1])} is {show(block[key])}, not a JSON object"
            raise ConfigError(f"--{name} cannot be set: {found}.")
        block = block[key]
    block[path[-1]] = value
