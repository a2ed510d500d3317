"""The operators beside what they must compute, in fp64 from first principles, and inputs off every tile edge."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_slw.ops.bias_gelu import bias_gelu
from megatron_slw.ops.cross_entropy import cross_entropy
from megatron_slw.ops.dropout_residual import bias_dropout_add, philox_words
from megatron_slw.ops.layer_norm import add_layer_norm, layer_norm
from megatron_slw.ops.linear_cross_entropy import linear_cross_entropy, weighted_linear_cross_entropy
from megatron_slw.ops.softmax import causal_softmax, masked_softmax

Function = Callable[..., Tensor | tuple[Tensor, Tensor]]
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Case:
    """An operator, what it must give, and its inputs: shapes of the differentiable ones, and the others."""

    ours: Function
    truth: Function
    shapes: Callable[[int, int], list[tuple[int, ...]]]
    rest: Callable[[int, int], tuple[Tensor, ...]] = lambda rows, width: ()


def seen_by_document(rows: int, length: int) -> Tensor:
    """The first key of each query: documents of 1, 2, 3, ... tokens."""
    starts = torch.arange(length).cumsum(0)
    return starts[torch.searchsorted(starts, torch.arange(length), right=True) - 1].expand(rows, length).contiguous()


def true_causal(scores: Tensor, first: Tensor | None = None, scale: float = 1.0) -> Tensor:
    key = torch.arange(scores.size(-1))
    query = torch.arange(scores.size(-2))[:, None] + scores.size(-1) - scores.size(-2)
    hidden = key > query
    if first is not None:
        hidden = hidden | (key < first[:, None, :, None])
    return (scores * scale).masked_fill(hidden, float("-inf")).softmax(-1)


def true_masked(scores: Tensor, seen: Tensor, scale: float) -> Tensor:
    return (scores * scale).masked_fill(~seen, float("-inf")).softmax(-1).nan_to_num(0.0)


def some_seen(rows: int, length: int) -> Tensor:
    """A mask for each row of the batch, with a query that sees nothing."""
    seen = torch.rand(rows, 1, length, length, generator=torch.Generator().manual_seed(length)) < 0.4
    seen[0, 0, 0] = False
    return seen


def true_layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, weight.shape, weight, bias, 1e-5)


def true_add_layer_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return true_layer_norm(x + residual, weight, bias), x + residual


def true_dropout(x: Tensor, bias: Tensor, residual: Tensor, seed: Tensor, p: float) -> Tensor:
    kept = (philox_words(seed, x.numel()) >= int(p * 2**32)).view(x.shape)
    return residual + (x + bias) * kept / (1.0 - p)


def plain_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="none")


def labels_for(rows: int, width: int) -> Tensor:
    return torch.randint(width, (rows * 3,), generator=torch.Generator().manual_seed(width))


SEED = torch.tensor(0x123456789ABCDEF)
NORM = {
    "layer_norm": Case(
        lambda x, w, b: layer_norm(x, w, b, 1e-5), true_layer_norm, lambda n, c: [(n, 3, c), (c,), (c,)]
    ),
    "add_layer_norm": Case(
        lambda x, r, w, b: add_layer_norm(x, r, w, b, 1e-5),
        true_add_layer_norm,
        lambda n, c: [(n, 3, c), (n, 3, c), (c,), (c,)],
    ),
}
SOFTMAX = {
    "causal_softmax": Case(
        partial(causal_softmax, scale=0.3), partial(true_causal, scale=0.3), lambda n, c: [(n, 2, c, c)]
    ),
    "causal_softmax, fewer queries": Case(
        partial(causal_softmax, scale=0.3), partial(true_causal, scale=0.3), lambda n, c: [(n, (c + 1) // 2, c)]
    ),
    "causal_softmax, documents": Case(
        lambda x, first: causal_softmax(x, 2.0, first),
        lambda x, first: true_causal(x, first, 2.0),
        lambda n, c: [(n, 2, c, c)],
        lambda n, c: (seen_by_document(n, c),),
    ),
    "masked_softmax": Case(
        lambda x, seen: masked_softmax(x, seen, 0.7),
        lambda x, seen: true_masked(x, seen, 0.7),
        lambda n, c: [(n, 2, c, c)],
        lambda n, c: (some_seen(n, c),),
    ),
}
POINTWISE = {
    "bias_gelu tanh": Case(
        bias_gelu, lambda x, b: F.gelu(x + b, approximate="tanh"), lambda n, c: [(n, 3, c), (c,)]
    ),
    "bias_gelu erf": Case(
        lambda x, b: bias_gelu(x, b, tanh=False), lambda x, b: F.gelu(x + b), lambda n, c: [(n, 3, c), (c,)]
    ),
    "bias_dropout_add": Case(
        lambda x, b, r: bias_dropout_add(x, b, r, SEED, 0.25),
        lambda x, b, r: true_dropout(x, b, r, SEED, 0.25),
        lambda n, c: [(n, 3, c), (c,), (n, 3, c)],
    ),
    "dropout_add": Case(
        lambda x, r: bias_dropout_add(x, None, r, SEED, 0.25),
        lambda x, r: true_dropout(x, torch.zeros(()), r, SEED, 0.25),
        lambda n, c: [(n, 3, c), (n, 3, c)],
    ),
}
LOSS = {
    "cross_entropy": Case(
        cross_entropy, plain_cross_entropy, lambda n, c: [(n * 3, c)], lambda n, c: (labels_for(n, c),)
    ),
    "cross_entropy, padded": Case(
        lambda logits, labels: cross_entropy(logits, labels, (logits.size(1) + 1) // 2),
        lambda logits, labels: plain_cross_entropy(logits[:, : (logits.size(1) + 1) // 2], labels),
        lambda n, c: [(n * 3, c)],
        lambda n, c: (labels_for(n, (c + 1) // 2),),
    ),
    "linear_cross_entropy": Case(
        linear_cross_entropy,
        lambda h, w, labels: plain_cross_entropy(h @ w.T, labels),
        lambda n, c: [(n * 3, 9), (c, 9)],
        lambda n, c: (labels_for(n, c),),
    ),
    "weighted_linear_cross_entropy": Case(
        weighted_linear_cross_entropy,
        lambda h, w, labels, weights: (plain_cross_entropy(h @ w.T, labels) * weights).sum(),
        lambda n, c: [(n * 3, 9), (c, 9)],
        lambda n, c: (labels_for(n, c), (torch.arange(n * 3) % 4) * 3e-6),
    ),
}
CASES = {**SOFTMAX, **NORM, **POINTWISE, **LOSS}


def inputs(case: Case, rows: int, width: int, dtype: torch.dtype, spread: float = 1.0) -> list[Tensor]:
    """Random differentiable inputs of one type."""
    generator = torch.Generator().manual_seed(rows * 100003 + width)
    drawn = [torch.randn(shape, generator=generator) * spread for shape in case.shapes(rows, width)]
    return [x.to(dtype).requires_grad_() for x in drawn]


def run(function: Function, tensors: list[Tensor], rest: tuple[Tensor, ...]) -> list[Tensor]:
    """Outputs and gradients of all inputs, for random gradients of the outputs."""
    leaves = [x.detach().requires_grad_() for x in tensors]
    result = function(*leaves, *rest)
    outputs = result if isinstance(result, tuple) else (result,)
    generator = torch.Generator().manual_seed(7)
    grads = [torch.randn(y.shape, generator=generator).to(y.dtype) for y in outputs]
    return [*(y.detach() for y in outputs), *torch.autograd.grad(outputs, leaves, grads)]
