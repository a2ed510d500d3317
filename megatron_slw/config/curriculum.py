"""The sequence-length curriculum out of DeepSpeed's JSON, from both of its forms.

The block stands where DeepSpeed's schema puts it (`data_efficiency.data_sampling.curriculum_learning`), or in
the legacy top-level `curriculum_learning` block, which DeepSpeed 0.19.8 refuses even as null: both are taken
out here, so that DeepSpeed never sees one.
"""

from __future__ import annotations

from typing import Any

from megatron_slw.config.errors import ConfigError, listing, require_known, require_object, show, validate
from megatron_slw.config.schema import CurriculumConfig

LEGACY_KEY = "curriculum_learning"
NEW_KEY = "data_efficiency"
NEW_FORM_PATH = (NEW_KEY, "data_sampling", "curriculum_learning")
MODES = ("seqlen_truncate",)
SCHEDULES: dict[str, tuple[str, ...]] = {
    "fixed_linear": ("total_curriculum_step", "difficulty_step"),
    "fixed_root": ("total_curriculum_step", "difficulty_step", "root_degree"),
    "fixed_discrete": ("difficulty", "max_step"),
}
SCHEDULE_KEYS = tuple(sorted({key for keys in SCHEDULES.values() for key in keys}))

_BLOCK_KEYS = ("min_difficulty", "max_difficulty", "schedule_type", "schedule_config")
_LEGACY_KEYS = ("enabled", "curriculum_type", *_BLOCK_KEYS)
_METRIC_KEYS = (
    "index_to_sample_path",
    "index_to_metric_path",
    "difficulty_type",
    "clustering_type",
    *_BLOCK_KEYS,
)
_SAMPLING_KEYS = (
    "enabled",
    "num_epochs",
    "num_workers",
    "pin_memory",
    "dynamic_batching",
    "curriculum_learning",
)


def take_curriculum(tree: dict[str, Any]) -> CurriculumConfig | None:
    """Take the curriculum blocks out of the user's `tree`; the schedule they hold, None without one.

    Of the `enabled` switches of the new form only the innermost is consulted, as in DeepSpeed; where it is
    missing or false the rest of the block is not read.

    Raises:
        ConfigError: both forms present, an unknown or missing key, a wrong type, a metric or schedule type
            that does not exist. How the lengths fit the model and each other is checked by `rules`.
    """
    legacy = tree.pop(LEGACY_KEY, None)
    new = tree.pop(NEW_KEY, None)
    curriculum = _new_block(new) if new is not None else None
    if legacy is not None and curriculum is not None:
        raise ConfigError(f"{LEGACY_KEY} and {'.'.join(NEW_FORM_PATH)} are both present. Keep one of them.")
    if legacy is not None:
        return _from_legacy(legacy)
    return _from_new(curriculum) if curriculum is not None else None


def _new_block(data_efficiency: Any) -> dict[str, Any] | None:
    """The innermost block of the new form, None where there is none."""
    outer = require_object(data_efficiency, NEW_KEY)
    require_known(outer, ("enabled", "seed", "data_sampling", "data_routing"), NEW_KEY)
    _refuse_enabled(outer, "data_routing", NEW_KEY)
    if outer.get("data_sampling") is None:
        return None
    path = f"{NEW_KEY}.data_sampling"
    sampling = require_object(outer["data_sampling"], path)
    require_known(sampling, _SAMPLING_KEYS, path)
    _refuse_enabled(sampling, "dynamic_batching", path)
    if sampling.get("curriculum_learning") is None:
        return None
    return require_object(sampling["curriculum_learning"], ".".join(NEW_FORM_PATH))


def _refuse_enabled(block: dict[str, Any], name: str, path: str) -> None:
    inner = block.get(name)
    if inner is not None and require_object(inner, f"{path}.{name}").get("enabled", False) is not False:
        raise ConfigError(f"{path}.{name} is not supported. Set {path}.{name}.enabled to false.")


def _enabled(block: dict[str, Any], path: str) -> bool:
    enabled = block.get("enabled", False)
    if not isinstance(enabled, bool):
        raise ConfigError(f"{path}.enabled must be true or false, not {show(enabled)}.")
    return enabled


def _from_legacy(value: Any) -> CurriculumConfig | None:
    block = require_object(value, LEGACY_KEY)
    require_known(block, _LEGACY_KEYS, LEGACY_KEY)
    if not _enabled(block, LEGACY_KEY):
        return None
    if block.get("curriculum_type") != "seqlen":
        found = show(block["curriculum_type"]) if "curriculum_type" in block else "missing"
        raise ConfigError(f'{LEGACY_KEY}.curriculum_type must be "seqlen", it is {found}.')
    return _schedule(block, LEGACY_KEY, "seqlen_truncate")


def _from_new(block: dict[str, Any]) -> CurriculumConfig | None:
    path = ".".join(NEW_FORM_PATH)
    require_known(block, ("enabled", "data_cluster_path", "curriculum_metrics"), path)
    if not _enabled(block, path):
        return None
    path = f"{path}.curriculum_metrics"
    metrics = require_object(block.get("curriculum_metrics", {}), path)
    if len(metrics) != 1:
        raise ConfigError(
            f"{path} must hold exactly one metric ({listing(MODES)}), it holds {show(list(metrics))}."
        )
    (mode,) = metrics
    require_known(metrics, MODES, path)
    path = f"{path}.{mode}"
    metric = require_object(metrics[mode], path)
    require_known(metric, _METRIC_KEYS, path)
    # A length is a value and every sample has the full length: DeepSpeed's other ways to draw samples have no
    # meaning.
    for name, only in (("difficulty_type", "value"), ("clustering_type", "single_cluster")):
        if metric.get(name, only) != only:
            raise ConfigError(
                f'{path}.{name} must be "{only}" for a sequence length, not {show(metric[name])}.'
            )
    return _schedule(metric, path, mode)


def _schedule(block: dict[str, Any], path: str, mode: str) -> CurriculumConfig:
    """The fields both forms share."""
    for name in ("schedule_type", "min_difficulty", "max_difficulty", "schedule_config"):
        if block.get(name) is None:
            raise ConfigError(f"{path}.{name} is missing.")
    schedule_type = block["schedule_type"]
    if schedule_type not in list(SCHEDULES):
        raise ConfigError(f"{path}.schedule_type must be {listing(SCHEDULES)}, not {show(schedule_type)}.")
    inner_path = f"{path}.schedule_config"
    inner = require_object(block["schedule_config"], inner_path)
    keys = SCHEDULES[schedule_type]
    for name in inner:
        if name in SCHEDULE_KEYS and name not in keys:
            raise ConfigError(f"{inner_path}.{name} is not used by schedule_type {schedule_type}. Remove it.")
    require_known(inner, keys, inner_path)
    for name in keys:
        if inner.get(name) is None:
            raise ConfigError(f"{inner_path}.{name} is missing: schedule_type {schedule_type} needs it.")
    top = {name: block[name] for name in ("schedule_type", "min_difficulty", "max_difficulty")}
    return validate(
        CurriculumConfig, {"mode": mode, **top, **inner}, path, inner={name: inner_path for name in keys}
    )
