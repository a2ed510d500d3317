"""Parameters, memory and FLOPs of a run, from its configuration alone.

Formulas: parameters and FLOPs after Narayanan et al. (arXiv 2104.04473, section 5.1), activations after
Korthikanti et al. (arXiv 2205.05198), weights, gradients and optimizer state after Rajbhandari et al. (ZeRO,
arXiv 1910.02054), each adapted to what this code and DeepSpeed 0.19.8 allocate.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_slw.config.schema import ModelConfig, RunConfig
from megatron_slw.slw.plan import Plan
from megatron_slw.train import activations as act

FP32 = act.FP32
ZERO_BUCKET = 500_000_000  # DeepSpeed's default reduce_bucket_size, in elements
ZERO3_LIVE = 1_000_000_000  # DeepSpeed's default stage3_max_live_parameters


def block_parameters(model: ModelConfig, tensor: int = 1) -> int:
    """Parameters of one transformer layer on one of `tensor` tensor-parallel ranks.

    Cut over the ranks: both matrices and the first bias of attention and of the feed-forward layer. Whole on
    each: the second biases and the two LayerNorms.
    """
    hidden, ffn = model.hidden_size, model.ffn_size
    cut = 4 * hidden * hidden + 3 * hidden + 2 * hidden * ffn + ffn
    return cut // tensor + 6 * hidden


def parameters(model: ModelConfig) -> int:
    """Parameters of the model; the shared token table counts once, with its padding rows."""
    embeddings = (model.padded_vocab_size + model.seq_length) * model.hidden_size
    return embeddings + model.num_layers * block_parameters(model) + 2 * model.hidden_size


def layers_per_stage(num_layers: int, stages: int) -> tuple[int, ...]:
    """Transformer layers of each pipeline stage: as equal as can be, the first stages with one more."""
    return tuple(num_layers // stages + (stage < num_layers % stages) for stage in range(stages))


def stage_parameters(config: RunConfig) -> tuple[int, ...]:
    """Parameters on one rank of each pipeline stage.

    First and last stage each hold this rank's rows of the token table (one copy where they are the same
    stage); the positions are whole on every tensor-parallel rank of the first, the final LayerNorm on those
    of the last.
    """
    model, tensor, stages = config.model, config.parallel.tensor, config.parallel.pipeline
    table = -(-model.padded_vocab_size // tensor) * model.hidden_size
    sizes = [n * block_parameters(model, tensor) for n in layers_per_stage(model.num_layers, stages)]
    sizes[0] += table + model.seq_length * model.hidden_size
    sizes[-1] += 2 * model.hidden_size + (table if stages > 1 else 0)
    return tuple(sizes)


def flops_per_token(model: ModelConfig, seq_len: int) -> int:
    """FLOPs of forward and backward for one token of a sequence of `seq_len`: 6 N + 12 L C T.

    N is the numbers that a token is multiplied with: all weight matrices and the output layer's table,
    without positions, biases and LayerNorms. The second term is attention's two products with all T
    positions, as the convention has it, although the causal mask needs half. Recomputed activations are no
    model FLOPs and not counted.
    """
    hidden = model.hidden_size
    weights = model.num_layers * (4 * hidden * hidden + 2 * hidden * model.ffn_size)
    weights += model.padded_vocab_size * hidden
    return 6 * weights + 12 * model.num_layers * hidden * seq_len


def plan_flops(model: ModelConfig, plan: Plan, steps: int | None = None) -> int:
    """FLOPs of the first `steps` steps, or of a whole run, each step at its own length. Evaluation is not counted."""
    last = plan.total_steps if steps is None else steps
    ends = [*(run.first_step for run in plan.runs[1:]), plan.total_steps]
    return sum(
        (min(end, last) - run.first_step) * run.rows * run.seq_len * flops_per_token(model, run.seq_len)
        for run, end in zip(plan.runs, ends, strict=True)
        if run.first_step < last
    )


@dataclass(frozen=True)
class Memory:
    """Peak bytes on one rank; `total` is less than the sum where parts never exist at one time."""

    stage: int
    """Pipeline stage of the rank."""
    weights: int
    gradients: int
    optimizer: int
    """fp32 master weights and moments."""
    buffers: int
    """DeepSpeed's reduction buckets, input ids."""
    activations: int
    total: int


def memory(config: RunConfig, seq_len: int, device: str = "cuda") -> Memory:
    """The rank that needs the most memory in a step of length `seq_len`, of all pipeline stages."""
    stages = [stage_memory(config, stage, seq_len, device) for stage in range(config.parallel.pipeline)]
    return max(stages, key=lambda memory: memory.total)


def stage_memory(config: RunConfig, stage: int, seq_len: int, device: str = "cuda") -> Memory:
    """Peak memory of a rank of pipeline stage `stage` in a step of length `seq_len`, from the second step on.

    The peak is the largest of four moments. With one micro-batch a step the gradients grow in the backward
    while the activations go, so they do not add up.

    1. The loss: all activations, logits and their gradients.
    2. The last layer's backward: all activations and its working memory.
    3. The end of the backward: all gradients, and that of the table's other use.
    4. The update: all gradients and the optimizer's temporaries.
    """
    count = stage_parameters(config)[stage]
    weights = _weights(config, count)
    kept, growing = _gradients(config, count)
    optimizer = _optimizer(config, count)
    buffers = _buffers(config, count, seq_len, device)
    saved, head_saved, head, working = _activations(config, stage, seq_len, device)
    table = -(-config.model.padded_vocab_size // config.parallel.tensor) * config.model.hidden_size
    has_table = stage in (0, config.parallel.pipeline - 1)
    table_gradient = act.ITEM_BYTES[config.precision] * table if has_table else 0
    moments = (
        saved + head_saved + head,
        saved + working + min(growing, table_gradient if head else 0),
        growing + table_gradient,
        growing + _update(config, count, device),
    )
    base = weights + kept + optimizer + buffers
    return Memory(
        stage=stage,
        weights=weights,
        gradients=kept + growing,
        optimizer=optimizer,
        buffers=buffers,
        activations=saved + max(head_saved + head, working),
        total=base + max(moments),
    )


def host_copy(config: RunConfig) -> int:
    """Bytes of host memory that `checkpoint.asynchronous` takes on the rank that needs the most, at most.

    fp32 weights and moments of the rank's shard, shared out over the data-parallel ranks by whole parameters, of which
    the largest is the token table or a feed-forward matrix.
    """
    model, tensor, replicas = config.model, config.parallel.tensor, config.data_parallel_size
    largest = max(-(-model.padded_vocab_size // tensor), model.ffn_size // tensor) * model.hidden_size
    share = max(stage_parameters(config)) // replicas
    return FP32 * (1 + _moments(config)) * (share + (largest if replicas > 1 else 0))


def _weights(config: RunConfig, count: int) -> int:
    item = act.ITEM_BYTES[config.precision]
    if config.zero_stage < 3:
        return item * count
    limit = config.deepspeed.get("zero_optimization", {}).get("stage3_max_live_parameters", ZERO3_LIVE)
    gathered = 0 if config.data_parallel_size == 1 else min(count, int(limit))
    return item * (_share(config, count) + gathered)


def _gradients(config: RunConfig, count: int) -> tuple[int, int]:
    """Bytes of gradients that are there during the whole backward, and of those that appear in its course."""
    item, accumulated = act.ITEM_BYTES[config.precision], _accumulated_bytes(config)
    if config.zero_stage >= 2:
        return accumulated * _share(config, count), 0
    if _sums_in_fp32(config):  # a micro-batch's own gradients come on top of the sums
        return accumulated * count, item * count
    if config.gradient_accumulation_steps > 1:
        return item * count, 0
    return 0, item * count


def _accumulated_bytes(config: RunConfig) -> int:
    default = "fp32" if config.precision == "bf16" else config.precision
    return act.ITEM_BYTES[config.deepspeed.get("data_types", {}).get("grad_accum_dtype", default)]


def _optimizer(config: RunConfig, count: int) -> int:
    """Moments, and the fp32 masters that every ZeRO stage keeps, in fp32 too."""
    moments = _moments(config)
    if config.zero_stage == 0:
        return FP32 * moments * count
    return FP32 * (1 + moments) * _share(config, count)


def _moments(config: RunConfig) -> int:
    """Tensors that the optimizer keeps for each parameter."""
    if config.optimizer.type == "SGD":
        return 1 if config.optimizer.momentum > 0.0 else 0
    return 2


def _update(config: RunConfig, count: int, device: str) -> int:
    """Temporaries between backward and update, and of the update itself, which come one after the other.

    DeepSpeed flattens the gradients to average them, bucket by bucket, or to hand ZeRO's optimizer an fp32
    copy; torch's Adam has two temporaries of the size of a parameter where it is not fused, which is on a
    CPU.
    """
    share, model = _share(config, count), config.model
    bucket, item = min(count, ZERO_BUCKET), act.ITEM_BYTES[config.precision]
    updated = share
    if config.zero_stage == 0:
        flat = FP32 * bucket
        updated = max(model.padded_vocab_size, model.ffn_size) // config.parallel.tensor * model.hidden_size
    elif _sums_in_fp32(config):
        flat = (FP32 + item) * bucket  # averaged in the model's type
    else:
        flat = FP32 * share
    adam = 2 * FP32 * updated if device == "cpu" and config.optimizer.type != "SGD" else 0
    separate = config.zero_stage == 0 or _sums_in_fp32(config)
    return max(flat, adam) if separate else flat + adam


def _sums_in_fp32(config: RunConfig) -> bool:
    """Whether DeepSpeed's BF16_Optimizer runs: ZeRO 1 with gradients summed in fp32, allocated for good."""
    return config.zero_stage == 1 and _accumulated_bytes(config) > act.ITEM_BYTES[config.precision]


def _buffers(config: RunConfig, count: int, seq_len: int, device: str) -> int:
    """DeepSpeed's reduction buckets, which it allocates whole, and the token ids of the step."""
    zero = config.deepspeed.get("zero_optimization", {})
    inputs = act.input_bytes(config) * config.train_batch_size // config.data_parallel_size * seq_len
    item = act.ITEM_BYTES[config.precision]
    if config.zero_stage == 0 or _sums_in_fp32(config) or not zero.get("contiguous_gradients", True):
        return inputs
    bucket = int(zero.get("reduce_bucket_size", ZERO_BUCKET))
    if device == "cpu":
        bucket = min(bucket, count)  # untouched pages of the rest are never mapped
    return inputs + item * bucket * (2 if zero.get("overlap_comm") else 1)


def _activations(config: RunConfig, stage: int, seq_len: int, device: str) -> tuple[int, int, int, int]:
    """What the micro-batches in flight keep; what the head keeps; the head's peak; a layer's backward."""
    stages, rows = config.parallel.pipeline, config.micro_batch_size
    micro_batches = config.gradient_accumulation_steps
    layers = layers_per_stage(config.model.num_layers, stages)[stage]
    whole_layer = sum(act.layer_table(config, rows, seq_len, device).values())
    working = act.layer_working(config, rows, seq_len, device)
    layer_input = act.layer_input(config, rows, seq_len)
    recompute = config.training.activation_checkpointing
    per_layer = layer_input if recompute else whole_layer
    saved = layers * per_layer + act.attention_bias(config, rows, seq_len, device)
    head_saved = head = 0
    if stage == 0:
        saved += act.embedding_saved(config, rows, seq_len, device)
    if stage < stages - 1:
        saved += layer_input  # the output, kept until its gradient comes back
    saved *= min(stages - stage, micro_batches)  # in flight under 1F1B: arXiv 2104.04473, section 2.2
    if stage == stages - 1:  # a micro-batch goes straight from its forward into its backward
        head_saved, head = act.head_saved(config, rows, seq_len), act.head_peak(config, rows, seq_len, device)
        if stages > 1:  # the pipeline engine's two buffers hold input and output until they are used again
            output = act.head_output(config, rows, seq_len, device)
            saved += min(2, micro_batches) * (layer_input + output)
    return saved, head_saved, head, working + (whole_layer - per_layer if recompute else 0)


def _share(config: RunConfig, count: int) -> int:
    """A data-parallel rank's part of `count` parameters under ZeRO."""
    return -(-count // config.data_parallel_size)
