"""LayerNorm over the last axis, alone and with the residual addition before it. arXiv 1607.06450.

Shapes: ... any, C hidden size. Mean and reciprocal standard deviation are fp32 whatever the type of x; the backward
pass takes them from the forward pass instead of a second reduction.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from megatron_slw.ops.library import compute_dtype, declare, new


def _check(x: Tensor, weight: Tensor, bias: Tensor) -> None:
    size = x.shape[-1] if x.dim() else -1
    torch._check(
        weight.dim() == 1 and bias.dim() == 1 and weight.shape[0] == size and bias.shape[0] == size,
        lambda: f"layer_norm over {size} columns: weight {tuple(weight.shape)} and bias {tuple(bias.shape)} differ",
    )


def _forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    _check(x, weight, bias)
    dtype = compute_dtype(x)
    wide = x.to(dtype)
    mean = wide.mean(-1, keepdim=True)
    centred = wide - mean
    rstd = (centred.square().mean(-1, keepdim=True) + eps).rsqrt()
    y = (centred * rstd * weight.to(dtype) + bias.to(dtype)).to(x.dtype).contiguous()
    return y, mean[..., 0].contiguous(), rstd[..., 0].contiguous()


def _backward(grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    dtype = compute_dtype(x)
    normal = (x.to(dtype) - mean[..., None]) * rstd[..., None]
    wide = grad.to(dtype)
    scaled = wide * weight.to(dtype)
    along = (scaled * normal).mean(-1, keepdim=True)
    grad_x = (scaled - scaled.mean(-1, keepdim=True) - normal * along) * rstd[..., None]
    rows = (wide * normal).reshape(-1, weight.numel()), wide.reshape(-1, weight.numel())
    return grad_x.to(x.dtype).contiguous(), rows[0].sum(0).to(weight.dtype), rows[1].sum(0).to(weight.dtype)


def _add_forward(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch._check(x.shape == residual.shape, lambda: "add_layer_norm adds two tensors of one shape")
    total = (x + residual).contiguous()
    y, mean, rstd = _forward(total, weight, bias, eps)
    return y, total, mean, rstd


def _add_backward(
    grad: Tensor, grad_total: Tensor | None, total: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    grad_x, grad_weight, grad_bias = _backward(grad, total, mean, rstd, weight)
    if grad_total is not None:
        grad_x = (grad_x.to(compute_dtype(total)) + grad_total).to(total.dtype).contiguous()
    return grad_x, grad_weight, grad_bias


def _fake(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    _check(x, weight, bias)
    dtype = compute_dtype(x)
    return new(x), new(x, x.shape[:-1], dtype), new(x, x.shape[:-1], dtype)


def _fake_backward(
    grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return new(x), new(weight), new(weight)


def _fake_add(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    y, mean, rstd = _fake(x, weight, bias, eps)
    return y, new(x), mean, rstd


def _fake_add_backward(
    grad: Tensor, grad_total: Tensor | None, total: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return new(total), new(weight), new(weight)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *_, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(inputs[0] if len(output) == 3 else output[1], mean, rstd, inputs[-3])


def _grad(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return None, None, None, None
    return (*_call_backward(grad, *ctx.saved_tensors), None)


def _grad_add(ctx: Any, grad: Tensor | None, grad_total: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return grad_total, grad_total, None, None, None
    grad_x, grad_weight, grad_bias = _call_add_backward(grad, grad_total, *ctx.saved_tensors)
    return grad_x, grad_x, grad_weight, grad_bias, None


_call = declare(
    "layer_norm(Tensor x, Tensor weight, Tensor bias, float eps) -> (Tensor, Tensor, Tensor)",
    _forward, _fake, _grad, _save,
)  # fmt: skip
_call_backward = declare(
    "layer_norm_backward(Tensor grad, Tensor x, Tensor mean, Tensor rstd, Tensor weight) -> (Tensor, Tensor, Tensor)",
    _backward, _fake_backward,
)  # fmt: skip
_call_add = declare(
    "add_layer_norm(Tensor x, Tensor residual, Tensor weight, Tensor bias, float eps) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    _add_forward, _fake_add, _grad_add, _save,
)  # fmt: skip
_call_add_backward = declare(
    "add_layer_norm_backward(Tensor grad, Tensor? grad_total, Tensor total, Tensor mean, Tensor rstd, Tensor weight) "
    "-> (Tensor, Tensor, Tensor)",
    _add_backward, _fake_add_backward,
)  # fmt: skip


def layer_norm(x: Tensor, weight_C: Tensor, bias_C: Tensor, eps: float) -> Tensor:
    """(x - mean) / sqrt(variance + eps) x weight + bias over the last axis of (..., C)."""
    return _call(x, weight_C, bias_C, eps)[0]


def add_layer_norm(
    x: Tensor, residual: Tensor, weight_C: Tensor, bias_C: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """LayerNorm of x + residual, and x + residual itself: the next residual. All (..., C)."""
    y, total, _, _ = _call_add(x, residual, weight_C, bias_C, eps)
    return y, total
