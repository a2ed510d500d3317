"""residual + dropout(x + bias) in one pass, without a stored mask.

Element e is kept by word e % 4 of Philox4x32-7 (Salmon and others, SC 2011) with counter e // 4 and the seed as key:
a function of (seed, e) alone, so the backward pass computes the mask again, the CPU, CUDA and plain implementations
draw the same one, and the number of threads does not matter.

Shapes: ... any, C width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from megatron_slw.ops.library import compute_dtype, declare, new

ROUNDS = 7
LOW = 0xFFFFFFFF


def philox_words(seed: Tensor, count: int) -> Tensor:
    """`count` numbers in [0, 2^32), int64, for a 0-dimensional int64 seed of any device."""
    counter = torch.arange((count + 3) // 4, device=seed.device)
    c0, c1 = counter & LOW, counter >> 32
    c2, c3 = torch.zeros_like(counter), torch.zeros_like(counter)
    k0, k1 = seed & LOW, (seed >> 32) & LOW
    for _ in range(ROUNDS):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57  # wraps at 2^64, as it should
        c0, c1, c2, c3 = ((p1 >> 32) & LOW) ^ c1 ^ k0, p1 & LOW, ((p0 >> 32) & LOW) ^ c3 ^ k1, p0 & LOW
        k0, k1 = (k0 + 0x9E3779B9) & LOW, (k1 + 0xBB67AE85) & LOW
    return torch.stack([c0, c1, c2, c3], dim=1).flatten()[:count]


def _factor(like: Tensor, seed: Tensor, p: float) -> Tensor:
    """1 / (1 - p) where an element is kept, else 0."""
    kept = philox_words(seed.to(like.device), like.numel()) >= int(p * 2**32)
    return (kept.to(compute_dtype(like)) / (1.0 - p)).view(like.shape)


def _check(x: Tensor, bias: Tensor | None, residual: Tensor, seed: Tensor, p: float) -> None:
    torch._check(x.shape == residual.shape, lambda: "bias_dropout_add adds two tensors of one shape")
    torch._check(seed.dim() == 0 and seed.dtype == torch.int64, lambda: "bias_dropout_add: the seed is one int64")
    torch._check(0.0 <= p < 1.0, lambda: f"bias_dropout_add: p is {p}, not in [0, 1)")
    if bias is not None:
        shape = tuple(bias.shape)
        torch._check(
            x.dim() > 0 and bias.dim() == 1 and shape[0] == x.shape[-1],
            lambda: f"bias_dropout_add: bias {shape} for {tuple(x.shape)}",
        )


def _forward(x: Tensor, bias: Tensor | None, residual: Tensor, seed: Tensor, p: float) -> Tensor:
    _check(x, bias, residual, seed, p)
    dtype = compute_dtype(x)
    wide = x.to(dtype) if bias is None else x.to(dtype) + bias.to(dtype)
    if p > 0.0:
        wide = wide * _factor(x, seed, p)
    return (wide + residual.to(dtype)).to(x.dtype).contiguous()


def _backward(grad: Tensor, bias: Tensor | None, seed: Tensor, p: float) -> tuple[Tensor, Tensor]:
    wide = grad.to(compute_dtype(grad))
    if p > 0.0:
        wide = wide * _factor(grad, seed, p)
    grad_bias = grad.new_empty(0) if bias is None else wide.reshape(-1, bias.numel()).sum(0).to(bias.dtype)
    return wide.to(grad.dtype).clone(memory_format=torch.contiguous_format), grad_bias


def _fake(x: Tensor, bias: Tensor | None, residual: Tensor, seed: Tensor, p: float) -> Tensor:
    _check(x, bias, residual, seed, p)
    return new(x)


def _fake_backward(grad: Tensor, bias: Tensor | None, seed: Tensor, p: float) -> tuple[Tensor, Tensor]:
    return new(grad), grad.new_empty(0) if bias is None else new(bias)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, bias, _, seed, ctx.p = inputs
    ctx.save_for_backward(bias, seed)


def _grad(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    bias, seed = ctx.saved_tensors
    if bias is None and ctx.p == 0.0:
        return grad, None, grad, None, None
    grad_x, grad_bias = _call_backward(grad, bias, seed, ctx.p)
    return grad_x, None if bias is None else grad_bias, grad, None, None


_call = declare(
    "bias_dropout_add(Tensor x, Tensor? bias, Tensor residual, Tensor seed, float p) -> Tensor",
    _forward, _fake, _grad, _save,
)  # fmt: skip
_call_backward = declare(
    "bias_dropout_add_backward(Tensor grad, Tensor? bias, Tensor seed, float p) -> (Tensor, Tensor)",
    _backward, _fake_backward,
)  # fmt: skip


def draw_seed(device: torch.device | str, rank: int = 0) -> Tensor:
    """A seed from the device's default generator, mixed with `rank` where ranks must draw different masks."""
    return torch.randint(2**48, (), device=device) * 4096 + rank


def bias_dropout_add(x: Tensor, bias_C: Tensor | None, residual: Tensor, seed: Tensor, p: float) -> Tensor:
    """residual + dropout(x + bias) for x and residual (..., C).

    Args:
        x: what is dropped out.
        bias_C: added before; None adds nothing.
        residual: added after.
        seed: int64, 0-dimensional, of `draw_seed`. The same seed gives the same mask.
        p: the share dropped, in [0, 1); what is kept is multiplied by 1 / (1 - p).
    """
    return _call(x, bias_C, residual, seed.to(x.device), p)
