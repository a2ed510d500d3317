"""How settings must fit each other: small functions that name the rule, the values and the knob to turn.

`check_layout` and `resolve_batch` run before a RunConfig exists, `check` on the finished one. How the lengths
of the curriculum must fit is in `curriculum_rules`.
"""

from __future__ import annotations

import math

from megatron_slw.config.curriculum_rules import check_curriculum
from megatron_slw.config.errors import ConfigError, listing, show
from megatron_slw.config.schema import ModelConfig, ParallelConfig, RunConfig, TaskConfig


def check_layout(model: ModelConfig, parallel: ParallelConfig, world_size: int) -> None:
    """The model and its split over the ranks; raises ConfigError at the first rule that does not hold."""
    _heads_divide_hidden(model)
    _tensor_divides_model(model, parallel)
    _pipeline_has_layers(model, parallel)
    _world_is_whole_replicas(parallel, world_size)


def check(config: RunConfig) -> None:
    """Every rule on a resolved configuration; raises ConfigError at the first that does not hold."""
    check_layout(config.model, config.parallel, config.world_size)
    _zero_fits_pipeline(config)
    _half_precision_needs_zero(config)
    _one_training_length(config)
    _growth_point_is_measured(config)
    _rollback_has_checkpoints(config)
    _tasks(config)
    _learning_rate(config)
    _split(config)
    _sequence_parallel_length(config)
    check_curriculum(config)


def resolve_batch(
    train: int | None, micro: int | None, accumulation: int | None, data_parallel: int
) -> tuple[int, int, int]:
    """The global batch, the micro-batch and the accumulation steps, from those given, as in DeepSpeed.

    The rule is train = micro x accumulation x data-parallel size. The micro-batch alone, or the global batch
    alone, means one accumulation step.

    Raises:
        ConfigError: too few are given, or no whole numbers satisfy the rule; with a global batch that would.
    """
    if train is None:
        if micro is None:
            raise ConfigError("train_batch_size or train_micro_batch_size_per_gpu must be given.")
        accumulation = accumulation or 1
        return micro * accumulation * data_parallel, micro, accumulation
    if micro is not None and accumulation is not None:
        product = micro * accumulation * data_parallel
        if train != product:
            raise ConfigError(
                f"train_batch_size {train} is not train_micro_batch_size_per_gpu {micro} x "
                f"gradient_accumulation_steps {accumulation} x data-parallel {data_parallel} = {product}. "
                f"Use {product}, or leave one of them out."
            )
        return train, micro, accumulation
    if micro is not None:
        _divisible(train, micro, data_parallel, "micro-batch", "train_micro_batch_size_per_gpu")
        return train, micro, train // (micro * data_parallel)
    accumulation = accumulation or 1
    _divisible(train, accumulation, data_parallel, "accumulation steps", "gradient_accumulation_steps")
    return train, train // (accumulation * data_parallel), accumulation


def _divisible(train: int, factor: int, data_parallel: int, what: str, knob: str) -> None:
    product = factor * data_parallel
    if train % product:
        nearest = max(product, (train + product // 2) // product * product)
        raise ConfigError(
            f"train_batch_size {train} is not divisible by {what} {factor} x data-parallel {data_parallel} "
            f"= {product}. Use {nearest}, or change {knob}."
        )


def _heads_divide_hidden(model: ModelConfig) -> None:
    hidden, heads = model.hidden_size, model.num_attention_heads
    if hidden % heads:
        raise ConfigError(
            f"model.num_attention_heads {heads} does not divide model.hidden_size {hidden}. "
            f"Use {hidden // heads * heads or heads} or {(hidden // heads + 1) * heads} as the hidden size, "
            "or change the number of heads."
        )


def _tensor_divides_model(model: ModelConfig, parallel: ParallelConfig) -> None:
    tensor, heads, ffn = parallel.tensor, model.num_attention_heads, model.ffn_size
    common = math.gcd(heads, ffn)
    for name, value in (("num_attention_heads", heads), ("ffn_hidden_size", ffn)):
        if value % tensor:
            sizes = listing(size for size in range(1, min(common, 1024) + 1) if common % size == 0)
            raise ConfigError(f"parallel.tensor {tensor} does not divide model.{name} {value}. Use {sizes}.")


def _pipeline_has_layers(model: ModelConfig, parallel: ParallelConfig) -> None:
    if parallel.pipeline > model.num_layers:
        raise ConfigError(
            f"parallel.pipeline {parallel.pipeline} is more than model.num_layers {model.num_layers}: every "
            f"stage needs a layer. Use at most {model.num_layers}."
        )


def _world_is_whole_replicas(parallel: ParallelConfig, world_size: int) -> None:
    ranks = parallel.tensor * parallel.pipeline
    if world_size % ranks:
        raise ConfigError(
            f"{world_size} ranks cannot hold whole replicas of parallel.tensor {parallel.tensor} x "
            f"parallel.pipeline {parallel.pipeline} = {ranks} ranks. Start a multiple of {ranks}, or change "
            "the layout."
        )


def _zero_fits_pipeline(config: RunConfig) -> None:
    if config.zero_stage >= 2 and config.parallel.pipeline > 1:
        raise ConfigError(
            f"zero_optimization.stage {config.zero_stage} does not work with parallel.pipeline "
            f"{config.parallel.pipeline}: a pipeline accumulates whole gradients. Use stage 0 or 1, or "
            "pipeline 1."
        )


def _half_precision_needs_zero(config: RunConfig) -> None:
    if config.precision != "fp32" and config.zero_stage == 0:
        raise ConfigError(
            f"{config.precision} needs zero_optimization.stage 1, 2 or 3, not 0: the fp32 master weights "
            f"live in the ZeRO optimizer. Use stage 1, or set {config.precision}.enabled to false."
        )


def _one_training_length(config: RunConfig) -> None:
    names = ("train_tokens", "train_steps", "train_samples", "train_epochs")
    given = {f"training.{name}": getattr(config.training, name) for name in names}
    given = {name: value for name, value in given.items() if value is not None}
    if not given:
        raise ConfigError(f"{listing(f'training.{name}' for name in names)} must be given.")
    if len(given) > 1:
        found = listing((f"{name} {value}" for name, value in given.items()), "and")
        raise ConfigError(f"{found} are {'both' if len(given) == 2 else 'all'} given. Keep one of them.")


def _growth_point_is_measured(config: RunConfig) -> None:
    if config.training.grow_when is not None and not config.evaluation.interval:
        raise ConfigError(
            f"training.grow_when {config.training.grow_when} is judged by validation losses, but evaluation.interval "
            "is 0. Set it to the steps between evaluations."
        )


def _rollback_has_checkpoints(config: RunConfig) -> None:
    if config.training.on_spike == "rollback" and not config.checkpoint.interval:
        raise ConfigError(
            "training.on_spike rollback goes back to the last checkpoint, but checkpoint.interval is 0. Set it to the "
            "steps between saves, or use skip."
        )


def _tasks(config: RunConfig) -> None:
    labels: dict[str, int] = {}
    for number, task in enumerate(config.evaluation.tasks):
        where = f"evaluation.tasks.{number}"
        if task.label in labels:
            raise ConfigError(
                f"evaluation.tasks.{labels[task.label]} and {number} are both called {show(task.label)}. Give one of "
                "them another name."
            )
        labels[task.label] = number
        check_task(task, config.model.seq_length, f"{where}.")


def check_task(task: TaskConfig, length: int, where: str = "") -> None:
    """What a task's settings must be for a model of this length; ConfigError begins with `where`."""
    if task.stride is not None and task.task == "lambada":
        raise ConfigError(f"{where}stride {task.stride} has no meaning for lambada, which is no stream. Remove it.")
    if task.stride is not None and task.stride > length:
        raise ConfigError(f"{where}stride {task.stride} is more than the model's length {length}. Lower it.")
    if task.json_key is not None and task.task == "lambada":
        raise ConfigError(
            f"{where}json_key {show(task.json_key)} has no meaning for lambada, whose keys are context and "
            "continuation, or text. Remove it."
        )


def _learning_rate(config: RunConfig) -> None:
    training, peak = config.training, config.optimizer.lr
    if training.min_lr > peak:
        raise ConfigError(
            f"training.min_lr {training.min_lr:g} is more than the peak rate, optimizer.params.lr {peak:g}. "
            "Lower it."
        )
    steps, tokens = training.lr_warmup_steps, training.lr_warmup_tokens
    if steps is not None and tokens is not None:
        raise ConfigError(
            f"training.lr_warmup_steps {steps} and training.lr_warmup_tokens {tokens} are both given. Remove "
            "one."
        )
    if training.train_steps is not None and steps is not None and steps >= training.train_steps:
        raise ConfigError(
            f"training.lr_warmup_steps {steps} must be less than training.train_steps "
            f"{training.train_steps}. Lower it."
        )
    name = "lr_decay_tokens" if training.lr_decay_tokens is not None else "train_tokens"
    end = training.lr_decay_tokens if training.lr_decay_tokens is not None else training.train_tokens
    if end is not None and tokens is not None and tokens >= end:
        raise ConfigError(
            f"training.lr_warmup_tokens {tokens} must be less than training.{name} {end}. Lower it."
        )


def _split(config: RunConfig) -> None:
    data = config.data
    try:
        shares = [float(part) for part in data.split.split(",")]
    except ValueError:
        shares = []
    if len(shares) != 3 or not all(math.isfinite(share) and share >= 0 for share in shares):
        raise ConfigError(
            f'data.split must be three numbers of at least 0 with commas between them, like "949,50,1", not '
            f'"{ascii(data.split)[1:-1][:60]}".'
        )
    if shares[0] <= 0:
        raise ConfigError(f'data.split "{data.split}" leaves nothing to train on. Raise its first number.')
    if shares[1] <= 0 and data.valid_path is None and config.evaluation.interval > 0:
        raise ConfigError(
            f'data.split "{data.split}" leaves nothing to validate on. Raise its second number, give '
            "data.valid_path, or set evaluation.interval to 0."
        )


def _sequence_parallel_length(config: RunConfig) -> None:
    tensor, length = config.parallel.tensor, config.model.seq_length
    if config.parallel.sequence_parallel and length % tensor:
        raise ConfigError(
            f"model.seq_length {length} is not divisible by parallel.tensor {tensor}, which "
            f"parallel.sequence_parallel needs. Use {length // tensor * tensor or tensor}, or switch it off."
        )
