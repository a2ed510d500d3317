"""The JSON file that describes a resolved configuration: what `load.resolve` would read back as the same."""

from __future__ import annotations

from typing import Any

from megatron_slw.config.curriculum import NEW_FORM_PATH
from megatron_slw.config.overrides import OUR_KEY, SECTIONS
from megatron_slw.config.schema import CurriculumConfig, OptimizerConfig, RunConfig

_TOP = ("mode", "schedule_type", "min_difficulty", "max_difficulty")
_SGD, _ADAM = ("lr", "weight_decay", "momentum"), ("lr", "betas", "eps", "weight_decay")


def to_tree(config: RunConfig) -> dict[str, Any]:
    """The user's JSON object for `config`.

    The accumulation steps are left out: they follow from the batch and the number of ranks, so the file describes the
    run on other layouts too.
    """
    tree: dict[str, Any] = {
        "train_batch_size": config.train_batch_size,
        "train_micro_batch_size_per_gpu": config.micro_batch_size,
        "gradient_clipping": config.gradient_clipping,
        "optimizer": _optimizer(config.optimizer),
        **config.deepspeed,
    }
    metrics = {
        schedule.mode: _metric(schedule)
        for schedule in (config.curriculum, config.batch_warmup)
        if schedule is not None
    }
    if metrics:
        outer, middle, inner = NEW_FORM_PATH
        tree[outer] = {middle: {inner: {"enabled": True, "curriculum_metrics": metrics}}}
    tree[OUR_KEY] = {name: getattr(config, name).model_dump(mode="json", exclude_none=True) for name in SECTIONS}
    return tree


def _optimizer(optimizer: OptimizerConfig) -> dict[str, Any]:
    names = _SGD if optimizer.type == "SGD" else _ADAM
    params = optimizer.model_dump(mode="json", include=set(names))
    if optimizer.type == "Adam":
        params["adam_w_mode"] = False  # DeepSpeed's Adam is AdamW otherwise
    return {"type": optimizer.type, "params": params}


def _metric(schedule: CurriculumConfig) -> dict[str, Any]:
    values = schedule.model_dump(mode="json", exclude_defaults=True)
    top = {name: values.pop(name) for name in _TOP if name in values}
    return {**{name: value for name, value in top.items() if name != "mode"}, "schedule_config": values}
