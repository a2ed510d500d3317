"""Bytes that one micro-batch's activations take, operator by operator, without running anything.

The table of what each operator keeps for its backward follows Korthikanti et al., "Reducing Activation
Recomputation in Large Transformer Models" (arXiv 2205.05198, section 4): in 16 bits, with dropout and one
tensor rank, it sums to the paper's 34 s b h bytes a layer, without the 5 a s^2 b of attention scores, which
fused attention does not keep. Where our operators differ from the paper's, the entry says so.
Which operators run is what `megatron_slw.ops.choice` says; the fused ones keep no dropout mask and no second copy of
the logits.

One rank's share throughout: B rows of a micro-batch, T tokens of a row, C hidden size, F feed-forward size, H
attention heads, V vocabulary rows; `device` is "cpu" or "cuda", whose dropout and attention keep different
things.
"""

from __future__ import annotations

from megatron_slw.config.schema import RunConfig
from megatron_slw.ops.choice import picks_chunked_loss, picks_fused_softmax, picks_kernels, rows_of_chunk

FP32 = 4
ITEM_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


def input_bytes(config: RunConfig) -> int:
    """A token on the device: int64 id, int64 label, fp32 weight, and the int64 document where it is tracked."""
    return 28 if config.data.track_documents else 20


def layer_table(config: RunConfig, rows: int, length: int, device: str) -> dict[str, int]:
    """Bytes that a transformer layer keeps from its forward to its backward, by operator.

    A linear layer keeps its input; so do LayerNorm and GELU. A tensor that two operators keep is counted
    once.
    """
    model, item = config.model, ITEM_BYTES[config.precision]
    tensor = config.parallel.tensor
    whole = rows * length * model.hidden_size * item
    shard = whole // _sequence_ranks(config)
    heads = rows * length * model.num_attention_heads // tensor
    feed_forward = rows * length * model.ffn_size // tensor * item
    statistics = (
        2 * FP32 * rows * length // _sequence_ranks(config)
    )  # mean and inverse deviation of each token
    table = {
        "input_layernorm.input": shard,
        "input_layernorm.statistics": statistics,
        # Gathered along the sequence under sequence parallelism, and kept so: not divided by the ranks.
        "query_key_value.input": whole,
        "attention.query_key_value": 3 * whole // tensor,
        "attention.output": whole // tensor,  # also the input of `dense`
        "post_attention_layernorm.input": shard,
        "post_attention_layernorm.statistics": statistics,
        "dense_h_to_4h.input": whole,
        "gelu.input": feed_forward,
        "dense_4h_to_h.input": feed_forward,
    }
    if model.hidden_dropout > 0.0 and not fused(config, device):
        table["dropout.masks"] = 2 * dropout_mask(config, rows, length, device)
    if fused_softmax(config, length, device):
        # Softmax output; with dropout its factors and their product too (bools on CUDA, and the product).
        factors = (1 if device == "cuda" else item) + item if model.attention_dropout > 0.0 else 0
        table["attention.scores"] = heads * length * (item + factors)
    elif unfused_attention(config, device):
        # Softmax output, dropout factors, their product: H x T numbers for each token. PyTorch computes them,
        # and copies query, key and value for them, in fp32.
        table["attention.scores"] = 3 * heads * length * FP32
        table["attention.query_key_value"] = 3 * whole // tensor // item * FP32
    else:
        table["attention.normalizer"] = heads * FP32
    return table


def fused(config: RunConfig, device: str) -> bool:
    """Whether the kernels of csrc/ serve the operators."""
    return picks_kernels(config.ops.backend, device)


def fused_softmax(config: RunConfig, length: int, device: str) -> bool:
    """Whether attention is scores, fused softmax and product."""
    model = config.model
    return picks_fused_softmax(model.attention, fused(config, device), device, length, model.head_dim)


def chunked_loss(config: RunConfig, rows: int, length: int, device: str) -> bool:
    """Whether the loss is made from a chunk of rows at a time."""
    size = logits(config, rows, length)
    return picks_chunked_loss(config.ops.cross_entropy, size, config.parallel.tensor, device)


def unfused_attention(config: RunConfig, device: str) -> bool:
    """Whether attention keeps T x T scores: PyTorch's fused kernel for CPUs knows no dropout."""
    return device == "cpu" and config.model.attention_dropout > 0.0


def attention_bias(config: RunConfig, rows: int, length: int, device: str) -> int:
    """Bytes that keep attention within documents: T x T numbers for each row, one copy for all layers of a stage.

    The fused softmax keeps its result alone, so the bias goes with the forward pass unless layers are recomputed.
    """
    kept = config.training.activation_checkpointing or not fused_softmax(config, length, device)
    if not config.data.reset_attention_mask or not kept:
        return 0
    return rows * length * length * ITEM_BYTES[config.precision]


def dropout_mask(config: RunConfig, rows: int, length: int, device: str) -> int:
    """Bytes that one hidden dropout keeps: bools on CUDA, factors of the activation's type elsewhere.

    Under sequence parallelism the layer draws its own mask, in the activation's type on every device.
    """
    sequence_ranks = _sequence_ranks(config)
    fused = device == "cuda" and sequence_ranks == 1
    item = 1 if fused else ITEM_BYTES[config.precision]
    return rows * length * config.model.hidden_size * item // sequence_ranks


def layer_input(config: RunConfig, rows: int, length: int) -> int:
    """Bytes of a layer's input: all that activation checkpointing keeps of it."""
    whole = rows * length * config.model.hidden_size * ITEM_BYTES[config.precision]
    return whole // _sequence_ranks(config)


def layer_working(config: RunConfig, rows: int, length: int, device: str) -> int:
    """Most bytes that the backward of one layer adds to what the forward kept, net of what it has freed.

    In the feed-forward part: the gradients of the layer's output and of one side of GELU; the other side's
    takes the place of GELU's output. In attention with T x T scores: their gradient on both sides of the
    softmax, after the feed-forward part has freed what it kept.
    """
    model, item, tensor = config.model, ITEM_BYTES[config.precision], config.parallel.tensor
    shard = layer_input(config, rows, length)
    feed_forward = rows * length * model.ffn_size // tensor * item
    scores = rows * length * length * model.num_attention_heads // tensor
    if fused_softmax(config, length, device):
        scores *= item
    elif unfused_attention(config, device):
        scores *= FP32
    else:
        return shard + feed_forward
    freed = 2 * feed_forward + 2 * shard
    return shard + max(feed_forward, 2 * scores - freed)


def embedding_saved(config: RunConfig, rows: int, length: int, device: str) -> int:
    """Bytes that the embeddings keep: the dropout mask, and int64 positions where these begin anew. A lookup of
    tokens keeps their ids, which the step has anyway.
    """
    mask = dropout_mask(config, rows, length, device) if config.model.hidden_dropout > 0.0 else 0  # never fused
    return mask + (8 * rows * length // _sequence_ranks(config) if config.data.reset_position_ids else 0)


def head_saved(config: RunConfig, rows: int, length: int) -> int:
    """Bytes that the final LayerNorm and the output layer keep: the input of each."""
    whole = rows * length * config.model.hidden_size * ITEM_BYTES[config.precision]
    return layer_input(config, rows, length) + whole + 2 * FP32 * rows * length


def head_output(config: RunConfig, rows: int, length: int, device: str) -> int:
    """Bytes of what the loss is made of: logits, or hidden states."""
    if chunked_loss(config, rows, length, device):
        return rows * length * config.model.hidden_size * ITEM_BYTES[config.precision]
    return logits(config, rows, length)


def logits(config: RunConfig, rows: int, length: int) -> int:
    """Bytes of this rank's columns of the logits."""
    columns = config.model.padded_vocab_size // config.parallel.tensor
    return rows * length * columns * ITEM_BYTES[config.precision]


def head_peak(config: RunConfig, rows: int, length: int, device: str) -> int:
    """Most bytes that logits, their normalization in fp32 and their gradients take at one time.

    Fused: the logits and their gradient. PyTorch's, one tensor rank: log_softmax keeps its output; its backward has
    that, the incoming and the outgoing gradient. Several: the forward has the logits, an fp32 copy where they are not
    fp32, and the softmax; the backward has the softmax and its gradient.
    """
    model, item, tensor = config.model, ITEM_BYTES[config.precision], config.parallel.tensor
    if chunked_loss(config, rows, length, device):
        return _chunked_peak(config, rows, length, device)
    tokens, padded = rows * length, model.padded_vocab_size // tensor
    if fused(config, device):
        return 2 * tokens * padded * item
    if tensor == 1:
        real = model.vocab_size or padded
        copied = FP32 * real if item != FP32 or real != padded else 0
        forward = padded * item + copied + FP32 * real
        backward = 3 * FP32 * real
    else:
        forward = padded * item + (FP32 * padded if item != FP32 else 0) + FP32 * padded
        backward = 2 * FP32 * padded
    return tokens * max(forward, backward)


def _chunked_peak(config: RunConfig, rows: int, length: int, device: str) -> int:
    """While a chunk's logits become gradients: both, and the gradients of hidden states and table, summed in fp32.

    On one tensor rank that is the forward, after which the gradients are scaled: each is there twice.
    """
    model, item = config.model, ITEM_BYTES[config.precision]
    columns = -(-model.padded_vocab_size // config.parallel.tensor)
    table, hidden = columns * model.hidden_size, rows * length * model.hidden_size * item
    chunk = min(rows * length, rows_of_chunk(columns, item, device)) * columns * item
    product = 0 if item == FP32 else item * table  # of a chunk, and at last the sum in the table's type
    peak = hidden + FP32 * table + max(2 * chunk, chunk + product)
    if config.parallel.tensor > 1:
        return peak
    return max(peak, 2 * hidden + 2 * item * table)


def _sequence_ranks(config: RunConfig) -> int:
    """Ranks over which the activations between tensor-parallel regions are cut."""
    return config.parallel.tensor if config.parallel.sequence_parallel else 1
