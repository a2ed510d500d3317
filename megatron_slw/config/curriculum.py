"""The sequence-length curriculum out of DeepSpeed's JSON, from both of its forms.

The block stands where DeepSpeed's schema puts it (`data_efficiency.data_sampling.curriculum_learning`), or in
the legacy top-level `curriculum_learning` block, which DeepSpeed 0.19.8 refuses even as null: both are taken
out here, so that DeepSpeed never sees one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from megatron_slw.config.errors import ConfigError, listing, require_known, require_object, show, validate
from megatron_slw.config.presets import ALTERNATIVES, BATCH_PRESETS, PRESETS, expand_preset
from megatron_slw.config.schema import CurriculumConfig

LEGACY_KEY = "curriculum_learning"
NEW_KEY = "data_efficiency"
NEW_FORM_PATH = (NEW_KEY, "data_sampling", "curriculum_learning")
MODES = ("seqlen_truncate", "seqlen_reshape", "seqlen_replay", "seqlen_tailpack", "seqlen_revisit")
BATCH_MODE = "batch_size"


class Keys(NamedTuple):
    """The settings in schedule_config of one schedule type."""

    required: tuple[str, ...]
    one_of: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()

    @property
    def all(self) -> tuple[str, ...]:
        """Every name."""
        return self.required + self.one_of + self.optional


DURATIONS, STAGE_ENDS = ALTERNATIVES
SCHEDULES = {
    "fixed_linear": Keys(("difficulty_step",), DURATIONS, ("max_distinct_lengths",)),
    "fixed_root": Keys(("difficulty_step", "root_degree"), DURATIONS, ("max_distinct_lengths",)),
    "fixed_discrete": Keys(("difficulty",), STAGE_ENDS),
    "mixed": Keys(("difficulty_step",), DURATIONS, ("max_distinct_lengths",)),
    "custom": Keys(("function",)),
    "loss_adaptive": Keys(
        ("difficulty_step", "patience"), (), ("max_distinct_lengths", "min_improvement", "smoothing")
    ),
}
ADAPTIVE_DEFAULTS = {"min_improvement": 0.0, "smoothing": 0.98}
BATCH_SCHEDULES = ("fixed_linear", "fixed_root", "fixed_discrete")
SCHEDULE_KEYS = tuple(sorted({key for keys in SCHEDULES.values() for key in keys.all}))

_BLOCK_KEYS = ("preset", "min_difficulty", "max_difficulty", "schedule_type", "schedule_config")
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


class Curricula(NamedTuple):
    """What a configuration schedules: the lengths, and the rows of a step."""

    lengths: CurriculumConfig | None = None
    rows: CurriculumConfig | None = None


def take_curricula(tree: dict[str, Any], seq_length: int, train_batch_size: int) -> Curricula:
    """Take the curriculum blocks out of the user's `tree`; the schedules they hold.

    Of the `enabled` switches of the new form only the innermost is consulted, as in DeepSpeed; where it is
    missing or false the rest of the block is not read.

    Args:
        tree: the parsed JSON; changed.
        seq_length: full length, where a preset's lengths end.
        train_batch_size: where its rows end.

    Raises:
        ConfigError: both forms present, an unknown or missing key, a wrong type, a metric, preset or schedule type
            that does not exist. How the lengths fit the model and each other is checked by `rules`.
    """
    legacy = tree.pop(LEGACY_KEY, None)
    new = tree.pop(NEW_KEY, None)
    block = _new_block(new) if new is not None else None
    if legacy is not None and block is not None:
        raise ConfigError(f"{LEGACY_KEY} and {'.'.join(NEW_FORM_PATH)} are both present. Keep one of them.")
    if legacy is not None:
        return Curricula(_from_legacy(legacy, seq_length))
    return _from_new(block, seq_length, train_batch_size) if block is not None else Curricula()


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


def _from_legacy(value: Any, seq_length: int) -> CurriculumConfig | None:
    block = require_object(value, LEGACY_KEY)
    require_known(block, _LEGACY_KEYS, LEGACY_KEY)
    if not _enabled(block, LEGACY_KEY):
        return None
    if block.get("curriculum_type") != "seqlen":
        found = show(block["curriculum_type"]) if "curriculum_type" in block else "missing"
        raise ConfigError(f'{LEGACY_KEY}.curriculum_type must be "seqlen", it is {found}.')
    block = expand_preset(block, LEGACY_KEY, PRESETS, seq_length)
    return _schedule(block, LEGACY_KEY, "seqlen_truncate")


def _from_new(block: dict[str, Any], seq_length: int, train_batch_size: int) -> Curricula:
    path = ".".join(NEW_FORM_PATH)
    require_known(block, ("enabled", "data_cluster_path", "curriculum_metrics"), path)
    if not _enabled(block, path):
        return Curricula()
    path = f"{path}.curriculum_metrics"
    metrics = require_object(block.get("curriculum_metrics", {}), path)
    require_known(metrics, (*MODES, BATCH_MODE), path)
    modes = [name for name in metrics if name != BATCH_MODE]
    if not metrics or len(modes) > 1:
        raise ConfigError(
            f"{path} must hold one metric of lengths ({listing(MODES)}), {BATCH_MODE}, or both, it holds "
            f"{show(list(metrics))}."
        )
    lengths = rows = None
    if modes:
        (mode,) = modes
        lengths = _metric(metrics[mode], f"{path}.{mode}", mode, PRESETS, seq_length)
    if BATCH_MODE in metrics:
        rows = _metric(metrics[BATCH_MODE], f"{path}.{BATCH_MODE}", BATCH_MODE, BATCH_PRESETS, train_batch_size)
    return Curricula(lengths, rows)


def _metric(value: Any, path: str, mode: str, presets: dict[str, dict[str, Any]], full: int) -> CurriculumConfig:
    metric = require_object(value, path)
    require_known(metric, _METRIC_KEYS, path)
    # A length is a value and every sample has the full length: DeepSpeed's other ways to draw samples have no
    # meaning.
    for name, only in (("difficulty_type", "value"), ("clustering_type", "single_cluster")):
        if metric.get(name, only) != only:
            raise ConfigError(f'{path}.{name} must be "{only}" for a sequence length, not {show(metric[name])}.')
    return _schedule(expand_preset(metric, path, presets, full), path, mode)


def _schedule(block: dict[str, Any], path: str, mode: str) -> CurriculumConfig:
    """The fields both forms share."""
    for name in ("schedule_type", "min_difficulty", "max_difficulty", "schedule_config"):
        if block.get(name) is None:
            raise ConfigError(f"{path}.{name} is missing.")
    schedule_type = block["schedule_type"]
    types = BATCH_SCHEDULES if mode == BATCH_MODE else tuple(SCHEDULES)
    if schedule_type not in types:
        raise ConfigError(f"{path}.schedule_type must be {listing(types)}, not {show(schedule_type)}.")
    inner_path = f"{path}.schedule_config"
    inner = require_object(block["schedule_config"], inner_path)
    keys = SCHEDULES[schedule_type]
    for name in inner:
        if name in SCHEDULE_KEYS and name not in keys.all:
            raise ConfigError(f"{inner_path}.{name} is not used by schedule_type {schedule_type}. Remove it.")
    require_known(inner, keys.all, inner_path)
    inner = {name: value for name, value in inner.items() if value is not None}
    for name in keys.required:
        if name not in inner:
            raise ConfigError(f"{inner_path}.{name} is missing: schedule_type {schedule_type} needs it.")
    given = [name for name in keys.one_of if name in inner]
    if keys.one_of and len(given) != 1:
        found = listing(given, "and") if given else "none of them"
        raise ConfigError(
            f"{inner_path} must have exactly one of {listing(keys.one_of)}: it says how long schedule_type "
            f"{schedule_type} takes. There is {found}."
        )
    inner = ADAPTIVE_DEFAULTS | inner if schedule_type == "loss_adaptive" else inner
    top = {name: block[name] for name in ("schedule_type", "min_difficulty", "max_difficulty")}
    return validate(
        CurriculumConfig, {"mode": mode, **top, **inner}, path, inner={name: inner_path for name in keys.all}
    )
