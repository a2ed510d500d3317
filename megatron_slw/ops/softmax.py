"""Softmax of attention scores with scale and mask in one pass over the scores.

Shapes: B rows of the batch, ... any heads, Q queries, K keys. Query q is the key K - Q + q.

    causal_softmax    query q sees the keys first[b, q] to K - Q + q. The others are neither read nor exponentiated.
    masked_softmax    query q sees the keys that a mask of any form names.

Both compute in fp32, give 0 where a key is not seen, and a row of zeros where no key is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from megatron_slw.ops.library import compute_dtype, declare, new


def _seen(scores: Tensor, first_BQ: Tensor | None) -> Tensor:
    queries, keys = scores.shape[-2:]
    key_K = torch.arange(keys, device=scores.device)
    seen = key_K <= torch.arange(keys - queries, keys, device=scores.device)[:, None]
    if first_BQ is None:
        return seen
    shape = (first_BQ.size(0), *([1] * (scores.dim() - 3)), queries, 1)
    return seen & (key_K >= first_BQ.reshape(shape))


def _check(scores: Tensor, first_BQ: Tensor | None) -> None:
    torch._check(scores.dim() >= 2, lambda: f"causal_softmax needs (..., Q, K) scores, not {tuple(scores.shape)}")
    queries, keys = scores.shape[-2:]
    torch._check(queries <= keys, lambda: f"causal_softmax: {queries} queries see only {keys} keys")
    if first_BQ is not None:
        rows = (scores.size(0), queries)
        shape = tuple(first_BQ.shape)
        torch._check(
            scores.dim() >= 3 and first_BQ.dim() == 2 and shape[0] == rows[0] and shape[1] == rows[1],
            lambda: f"causal_softmax: first must be (B, Q) = {rows}, not {shape}",
        )


def _softmax(scores: Tensor, seen: Tensor, scale: float) -> Tensor:
    torch._check(scale != 0.0, lambda: "softmax: the scale is 0")
    scaled = scores.to(compute_dtype(scores)) * scale
    # A finite fill keeps a row without a visible key free of NaN; its zeros come from the second fill.
    probabilities = scaled.masked_fill(~seen, torch.finfo(scaled.dtype).min).softmax(-1).masked_fill(~seen, 0.0)
    return probabilities.to(scores.dtype).contiguous()


def _softmax_backward(grad: Tensor, output: Tensor, scale: float) -> Tensor:
    dtype = compute_dtype(output)
    weighted = grad.to(dtype) * output.to(dtype)
    return ((weighted - output.to(dtype) * weighted.sum(-1, keepdim=True)) * scale).to(output.dtype).contiguous()


def _causal(scores: Tensor, scale: float, first: Tensor | None) -> Tensor:
    _check(scores, first)
    return _softmax(scores, _seen(scores, first), scale)


def _causal_backward(grad: Tensor, output: Tensor, scale: float, first: Tensor | None) -> Tensor:
    return _softmax_backward(grad.masked_fill(~_seen(output, first), 0.0), output, scale)


def _fake_causal(scores: Tensor, scale: float, first: Tensor | None) -> Tensor:
    _check(scores, first)
    return new(scores)


def _fake_backward(grad: Tensor, output: Tensor, *_: Any) -> Tensor:
    return new(output)


def _save_causal(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ctx.scale, first = inputs
    ctx.save_for_backward(output, first)


def _grad_causal(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    output, first = ctx.saved_tensors
    return _call_causal_backward(grad, output, ctx.scale, first), None, None


def _masked(scores: Tensor, seen: Tensor, scale: float) -> Tensor:
    torch._check(seen.dtype == torch.bool, lambda: f"masked_softmax needs a bool mask, not {seen.dtype}")
    return _softmax(scores, seen, scale)


def _fake_masked(scores: Tensor, seen: Tensor, scale: float) -> Tensor:
    torch._check(seen.dtype == torch.bool, lambda: f"masked_softmax needs a bool mask, not {seen.dtype}")
    return new(scores)


def _save_masked(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.scale = inputs[2]
    ctx.save_for_backward(output)


def _grad_masked(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    (output,) = ctx.saved_tensors
    return _call_masked_backward(grad, output, ctx.scale), None, None


_call_causal = declare(
    "causal_softmax(Tensor scores, float scale, Tensor? first) -> Tensor",
    _causal, _fake_causal, _grad_causal, _save_causal,
)  # fmt: skip
_call_causal_backward = declare(
    "causal_softmax_backward(Tensor grad, Tensor output, float scale, Tensor? first) -> Tensor",
    _causal_backward, _fake_backward,
)  # fmt: skip
_call_masked = declare(
    "masked_softmax(Tensor scores, Tensor seen, float scale) -> Tensor",
    _masked, _fake_masked, _grad_masked, _save_masked,
)  # fmt: skip
_call_masked_backward = declare(
    "masked_softmax_backward(Tensor grad, Tensor output, float scale) -> Tensor", _softmax_backward, _fake_backward
)


def causal_softmax(scores: Tensor, scale: float = 1.0, first_BQ: Tensor | None = None) -> Tensor:
    """softmax(scale x scores) over the keys that each query sees.

    Args:
        scores: (..., Q, K) with Q <= K; (B, ..., Q, K) where `first_BQ` is given.
        scale: multiplies the scores; not 0.
        first_BQ: int64, the first key that a query sees (where its document begins); None is key 0.

    Returns:
        Probabilities, contiguous, of the shape and type of `scores`.
    """
    return _call_causal(scores, scale, first_BQ)


def masked_softmax(scores: Tensor, seen: Tensor, scale: float = 1.0) -> Tensor:
    """softmax(scale x scores) over the keys where `seen`, a bool mask that broadcasts to `scores`, is True."""
    return _call_masked(scores, seen, scale)
