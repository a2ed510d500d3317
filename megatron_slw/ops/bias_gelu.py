"""GELU(x + bias) in one pass; the backward pass computes x + bias again instead of keeping it. arXiv 1606.08415.

Shapes: ... any, C width. `tanh` picks the approximation that GPT-2 uses, else the exact form with erf.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_slw.ops.library import compute_dtype, declare, new


def _check(x: Tensor, bias: Tensor) -> None:
    size = x.shape[-1] if x.dim() else -1
    torch._check(
        bias.dim() == 1 and bias.shape[0] == size, lambda: f"bias_gelu: bias {tuple(bias.shape)} for {size} columns"
    )


def _forward(x: Tensor, bias: Tensor, tanh: bool) -> Tensor:
    _check(x, bias)
    dtype = compute_dtype(x)
    biased = x.to(dtype) + bias.to(dtype)
    return F.gelu(biased, approximate="tanh" if tanh else "none").to(x.dtype).contiguous()


def _derivative(u: Tensor, tanh: bool) -> Tensor:
    if not tanh:
        density = (u.square() * -0.5).exp() / math.sqrt(2.0 * math.pi)
        return 0.5 * (1.0 + torch.erf(u / math.sqrt(2.0))) + u * density
    scale, cubic = math.sqrt(2.0 / math.pi), 0.044715
    t = torch.tanh(scale * (u + cubic * u**3))
    return 0.5 * (1.0 + t) + 0.5 * u * (1.0 - t.square()) * scale * (1.0 + 3.0 * cubic * u.square())


def _backward(grad: Tensor, x: Tensor, bias: Tensor, tanh: bool) -> tuple[Tensor, Tensor]:
    dtype = compute_dtype(x)
    wide = grad.to(dtype) * _derivative(x.to(dtype) + bias.to(dtype), tanh)
    return wide.to(x.dtype).contiguous(), wide.reshape(-1, bias.numel()).sum(0).to(bias.dtype)


def _fake(x: Tensor, bias: Tensor, tanh: bool) -> Tensor:
    _check(x, bias)
    return new(x)


def _fake_backward(grad: Tensor, x: Tensor, bias: Tensor, tanh: bool) -> tuple[Tensor, Tensor]:
    return new(x), new(bias)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, bias, ctx.tanh = inputs
    ctx.save_for_backward(x, bias)


def _grad(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    return (*_call_backward(grad, *ctx.saved_tensors, ctx.tanh), None)


_call = declare("bias_gelu(Tensor x, Tensor bias, bool tanh) -> Tensor", _forward, _fake, _grad, _save)
_call_backward = declare(
    "bias_gelu_backward(Tensor grad, Tensor x, Tensor bias, bool tanh) -> (Tensor, Tensor)", _backward, _fake_backward
)


def bias_gelu(x: Tensor, bias_C: Tensor, tanh: bool = True) -> Tensor:
    """GELU(x + bias) for x (..., C)."""
    return _call(x, bias_C, tanh)
