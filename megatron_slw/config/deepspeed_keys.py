"""DeepSpeed's own keys: which exist, which would break a run here, and what we read from them.

The lists follow DeepSpeed 0.19.8. DeepSpeed itself ignores a top-level key it does not know, so that a
misspelt `gradient_cliping` trains with the default; here it is an error.
"""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter, ValidationError

from megatron_slw.config.errors import (
    ConfigError,
    join_path,
    listing,
    require_known,
    require_object,
    show,
    validate,
)
from megatron_slw.config.schema import NonNegativeFloat, OptimizerConfig, PositiveInt

BATCH_KEYS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")

PASSED_KEYS = (
    "activation_checkpointing", "aio", "bf16", "checkpoint", "comet", "comms_logger",
    "communication_data_type", "csv_monitor", "data_types", "dataloader_drop_last", "disable_allgather",
    "disable_python_gc", "dump_state", "flops_profiler", "fp16", "gradient_predivide_factor", "log_level",
    "memory_breakdown", "prescale_gradients", "seq_parallel_communication_data_type", "steps_per_print",
    "tensorboard", "timers", "vocabulary_size", "wandb", "wall_clock_breakdown",
    "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "zero_optimization",
)  # fmt: skip

REFUSED_KEYS = {
    "amp": "use bf16 or fp16",
    "autotuning": "choose the batch and the layout with --dry-run",
    "compile": "DeepCompile changes the model's parameters",
    "compression_training": "it changes the model's layers",
    "eigenvalue": "it belongs to compression training",
    "elasticity": "it changes the global batch, which the length plan is compiled for",
    "expert_parallel": "there are no experts",
    "gradient_allreduce_op": "gradients are averaged",
    "hybrid_engine": "it is for reinforcement learning",
    "pipeline": "set megatron_slw.parallel.pipeline, the rest follows from the layout",
    "managed_gradient_accumulation": "the accumulation follows from the batch sizes",
    "progressive_layer_drop": "it changes the model's layers",
    "quantize_training": "it changes the model's layers",
    "scheduler": "the learning rate follows megatron_slw.training.lr_warmup_steps or lr_warmup_tokens, "
    "lr_decay_style, "
    "lr_decay_tokens and min_lr",
    "sparse_attention": "attention is dense",
    "sparse_gradients": "the tied embedding has dense gradients",
    "tensor_parallel": "set megatron_slw.parallel.tensor",
    "torch_autocast": "use bf16 or fp16",
    "use_data_before_expert_parallelism": "there are no experts",
    "weight_quantization": "it changes the model's layers",
    "zenflow": "optimizer offload is not supported",
}

BF16_KEYS = ("enabled", "check_grad_overflow", "immediate_grad_update")
FP16_KEYS = (
    "enabled", "loss_scale", "initial_scale_power", "loss_scale_window", "hysteresis",
    "consecutive_hysteresis", "min_loss_scale",
)  # fmt: skip
ZERO_KEYS = (
    "stage", "contiguous_gradients", "reduce_scatter", "reduce_bucket_size",
    "use_multi_rank_bucket_allreduce", "allgather_partitions", "allgather_bucket_size", "overlap_comm",
    "sub_group_size", "stage3_prefetch_bucket_size", "prefetch_bucket_size",
    "stage3_param_persistence_threshold", "param_persistence_threshold",
    "stage3_model_persistence_threshold", "model_persistence_threshold", "stage3_max_live_parameters",
    "max_live_parameters", "stage3_max_reuse_distance", "max_reuse_distance",
    "stage3_use_all_reduce_for_fetch_params", "use_all_reduce_for_fetch_params",
    "stage3_allgather_sequential", "allgather_sequential", "stage3_module_granularity_threshold",
    "module_granularity_threshold", "stage3_gather_16bit_weights_on_model_save",
    "gather_16bit_weights_on_model_save", "ignore_unused_parameters", "round_robin_gradients",
    "memory_efficient_linear", "log_trace_cache_warnings", "enable_sanity_checks", "override_module_apply",
    "load_from_fp32_weights", "parameter_alignment",
)  # fmt: skip
ZERO_REFUSED = (
    "compute_grad_norm", "elastic_checkpoint", "legacy_stage1", "offload_param", "offload_optimizer",
    "cpu_offload", "cpu_offload_param", "cpu_offload_use_pin_memory", "zenflow", "zero_hpz_partition_size",
    "zero_quantized_weights", "zero_quantized_gradients", "mics_shard_size",
    "zero_quantized_nontrainable_weights", "mics_hierarchical_params_gather", "pipeline_loading_checkpoint",
    "save_muon_momentum_buffer_in_memory", "leaf_module", "zeropp_loco_param",
)  # fmt: skip

_OPTIMIZERS = {"adam": "Adam", "adamw": "AdamW", "sgd": "SGD"}
_OPTIMIZER_PARAMS = {
    "Adam": ("lr", "betas", "eps", "weight_decay"),
    "AdamW": ("lr", "betas", "eps", "weight_decay"),
    "SGD": ("lr", "weight_decay", "momentum"),
}
_ADAM_SWITCHES = ("torch_adam", "adam_w_mode")


def check_top_level(tree: dict[str, Any], also_valid: tuple[str, ...]) -> None:
    """Refuse a top-level key that DeepSpeed does not have, and one of a feature that would break a run here.

    `also_valid` has the names besides DeepSpeed's. A feature's block that says `"enabled": false` is let
    through.
    """
    read_here = ("gradient_clipping", "optimizer", *BATCH_KEYS)
    require_known(tree, (*PASSED_KEYS, *REFUSED_KEYS, *read_here, *also_valid), "")
    for name, reason in REFUSED_KEYS.items():
        value = tree.get(name)
        off = value is None or value is False or (isinstance(value, dict) and value.get("enabled") is False)
        if name in tree and not off:
            raise ConfigError(f"{name} is not supported: {reason}. Remove it.")


def read_optimizer(block: Any) -> OptimizerConfig:
    """DeepSpeed's `optimizer` block.

    DeepSpeed's "Adam" is AdamW (decoupled weight decay) unless `adam_w_mode` is false; the name in the result
    says what is built. Weight decay defaults to torch.optim's: 0.01 for AdamW, 0 for the others.
    """
    if block is None:
        raise ConfigError(
            'optimizer is missing: write "optimizer": {"type": "AdamW", "params": {"lr": 1.5e-4}}.'
        )
    optimizer = require_object(block, "optimizer")
    require_known(optimizer, ("type", "params"), "optimizer")
    name = optimizer.get("type")
    kind = _OPTIMIZERS.get(name.lower()) if isinstance(name, str) else None
    if kind is None:
        raise ConfigError(f"optimizer.type must be {listing(_OPTIMIZERS.values())}, not {show(name)}.")
    params = dict(require_object(optimizer.get("params", {}), "optimizer.params"))
    if "max_grad_norm" in params:
        raise ConfigError("optimizer.params.max_grad_norm is not used by DeepSpeed: set gradient_clipping.")
    adam = kind != "SGD"
    require_known(params, (*_OPTIMIZER_PARAMS[kind], *(_ADAM_SWITCHES if adam else ())), "optimizer.params")
    for switch in _ADAM_SWITCHES if adam else ():
        value = params.pop(switch, None)
        if value is not None and not isinstance(value, bool):
            raise ConfigError(f"optimizer.params.{switch} must be true or false, not {show(value)}.")
        if switch == "adam_w_mode" and kind == "Adam" and value is not False:
            kind = "AdamW"
    params = {name: value for name, value in params.items() if value is not None}
    if kind != "AdamW":
        params.setdefault("weight_decay", 0.0)
    return validate(OptimizerConfig, {"type": kind, **params}, "optimizer.params")


def read_precision(tree: dict[str, Any]) -> str:
    """`fp32`, `bf16` or `fp16`, from which of DeepSpeed's blocks is enabled."""
    enabled = []
    for name, keys in (("bf16", BF16_KEYS), ("fp16", FP16_KEYS)):
        if name not in tree:
            continue
        block = require_object(tree[name], name)
        require_known(block, keys, name)
        switch = block.get("enabled", False)
        if not isinstance(switch, bool):
            raise ConfigError(f"{name}.enabled must be true or false, not {show(switch)}.")
        if switch:
            enabled.append(name)
    if len(enabled) == 2:
        raise ConfigError("bf16.enabled and fp16.enabled are both true. Set one of them to false.")
    precision = enabled[0] if enabled else "fp32"
    _check_accumulation_type(tree.get("data_types", {}), precision)
    return precision


def _check_accumulation_type(value: Any, precision: str) -> None:
    block = require_object(value, "data_types")
    require_known(block, ("grad_accum_dtype",), "data_types")
    valid = ("fp32", "bf16") if precision == "bf16" else (precision,)
    kind = block.get("grad_accum_dtype", valid[0])
    if kind not in valid:
        raise ConfigError(
            f"data_types.grad_accum_dtype must be {listing(valid)} where the precision is {precision}, not "
            f"{show(kind)}."
        )


def read_zero_stage(tree: dict[str, Any]) -> int:
    """The ZeRO stage, 0 where the file says none; ZeRO options that would break a run are refused."""
    path = "zero_optimization"
    block = require_object(tree.get(path, {}), path)
    for name in ZERO_REFUSED:
        if block.get(name) not in (None, False):
            raise ConfigError(
                f"{path}.{name} is not supported: the checkpoint could not follow it. Remove it."
            )
    require_known(block, (*ZERO_KEYS, *ZERO_REFUSED), path)
    for name in ("reduce_bucket_size", "stage3_max_live_parameters"):  # read by the memory estimate
        size = block.get(name, 1)
        if isinstance(size, bool) or not isinstance(size, int | float) or size < 1:
            raise ConfigError(f"{path}.{name} must be a number of at least 1, not {show(size)}.")
    stage = block.get("stage", 0)
    if isinstance(stage, bool) or not isinstance(stage, int) or not 0 <= stage <= 3:
        raise ConfigError(f"{path}.stage must be 0, 1, 2 or 3, not {show(stage)}.")
    return stage


def read_gradient_clipping(tree: dict[str, Any]) -> float:
    """The largest gradient norm; 1.0 where the file says none, as in DeepSpeed, and 0 for no clipping."""
    value = tree.get("gradient_clipping", 1.0)
    try:
        return TypeAdapter(NonNegativeFloat).validate_python(value)
    except ValidationError:
        raise ConfigError(f"gradient_clipping must be a number of at least 0, not {show(value)}.") from None


def read_batch_keys(tree: dict[str, Any]) -> tuple[int | None, int | None, int | None]:
    """The three batch settings, in the order of BATCH_KEYS, None for those not given."""
    values: list[int | None] = []
    for name in BATCH_KEYS:
        value = tree.get(name)
        try:
            values.append(None if value is None else TypeAdapter(PositiveInt).validate_python(value))
        except ValidationError:
            raise ConfigError(
                f"{join_path('', name)} must be an integer greater than 0, not {show(value)}."
            ) from None
    return values[0], values[1], values[2]
