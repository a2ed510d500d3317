"""The operators as a model calls them, from the implementation that the configuration names.

    torch   PyTorch's own operators, unfused.
    csrc    the fused operators, with the kernels of csrc/.
    apex    NVIDIA's LayerNorm (https://github.com/NVIDIA/apex; the package of that name on PyPI is something else),
            the others as torch.
    auto    csrc where the kernels are built for the device, else torch.

Shapes: ... any, C width, I and O input and output features, N rows, V columns of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec

import torch.nn.functional as F
from torch import Tensor

from megatron_slw.config.errors import ConfigError
from megatron_slw.ops import bias_gelu, cross_entropy, dropout_residual, layer_norm, softmax
from megatron_slw.ops.library import has_kernel


@dataclass(frozen=True)
class Operators:
    """One implementation of each operator; what they compute stands with the functions of `megatron_slw.ops`."""

    backend: str
    """torch, csrc or apex."""
    device_type: str
    layer_norm: Callable[[Tensor, Tensor, Tensor, float], Tensor]
    add_layer_norm: Callable[[Tensor, Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]
    linear_gelu: Callable[[Tensor, Tensor, Tensor, bool], Tensor]
    """GELU(x W^T + b): (..., I), (O, I), (O,) and whether in the tanh form, to (..., O)."""
    cross_entropy: Callable[[Tensor, Tensor, int], Tensor]
    """Of logits (N, V), labels (N,) and how many of the columns are real."""

    @property
    def fused(self) -> bool:
        """Whether dropout + residual, vocabulary-parallel cross-entropy and softmax are the fused ones too."""
        return self.backend == "csrc"


def _layer_norm(x: Tensor, weight_C: Tensor, bias_C: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, weight_C.shape, weight_C, bias_C, eps)


def _add_layer_norm(
    x: Tensor, residual: Tensor, weight_C: Tensor, bias_C: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    total = x + residual
    return F.layer_norm(total, weight_C.shape, weight_C, bias_C, eps), total


def _linear_gelu(x: Tensor, weight_OI: Tensor, bias_O: Tensor, tanh: bool) -> Tensor:
    return F.gelu(F.linear(x, weight_OI, bias_O), approximate="tanh" if tanh else "none")


def _fused_linear_gelu(x: Tensor, weight_OI: Tensor, bias_O: Tensor, tanh: bool) -> Tensor:
    return bias_gelu.bias_gelu(F.linear(x, weight_OI), bias_O, tanh)


def _cross_entropy(logits_NV: Tensor, labels_N: Tensor, columns: int) -> Tensor:
    cross_entropy.check_labels(labels_N, columns)  # F.cross_entropy would give 0 for -100
    return F.cross_entropy(logits_NV[:, :columns].float(), labels_N, reduction="none")


def _apex_layer_norm() -> Callable[[Tensor, Tensor, Tensor, float], Tensor]:
    if find_spec("apex") is None or find_spec("apex.normalization") is None:
        raise ConfigError(
            "ops.backend is apex, but NVIDIA's apex is not installed (the package of that name on PyPI is something "
            "else). Install it, or use auto."
        )
    from apex.normalization.fused_layer_norm import fused_layer_norm_affine

    return lambda x, weight_C, bias_C, eps: fused_layer_norm_affine(x, weight_C, bias_C, weight_C.shape, eps)


def select_operators(backend: str, device_type: str) -> Operators:
    """The operators of `ops.backend` on "cpu" or "cuda".

    Raises:
        ConfigError: csrc without kernels for the device, or apex where it is not installed.
    """
    built = has_kernel("layer_norm", device_type)
    if backend == "csrc" and not built:
        raise ConfigError(
            f"ops.backend is csrc, but no kernels are built for {device_type}. "
            "Run `python csrc/build.py` in the repository (docs/kernels.md), or use auto."
        )
    plain = Operators("torch", device_type, _layer_norm, _add_layer_norm, _linear_gelu, _cross_entropy)
    if backend == "apex":
        norm = _apex_layer_norm()
        return replace(
            plain, backend="apex", layer_norm=norm,
            add_layer_norm=lambda x, residual, w, b, eps: (norm(x + residual, w, b, eps), x + residual),
        )  # fmt: skip
    if backend == "torch" or not built:
        return plain
    return Operators(
        "csrc", device_type, layer_norm.layer_norm, layer_norm.add_layer_norm, _fused_linear_gelu,
        cross_entropy.cross_entropy,
    )  # fmt: skip


def attend(q: Tensor, k: Tensor, v: Tensor, bias_B1TT: Tensor | None, dropout: float) -> Tensor:
    """softmax(q k^T / sqrt(D)) v with the fused softmax, for (B, H, T, D); a bias is 0 where a key is seen."""
    scores_BHTT, scale = q @ k.transpose(-1, -2), q.size(-1) ** -0.5
    if bias_B1TT is None:
        shares_BHTT = softmax.causal_softmax(scores_BHTT, scale)
    else:
        shares_BHTT = softmax.masked_softmax(scores_BHTT, bias_B1TT == 0, scale)
    return F.dropout(shares_BHTT, dropout) @ v


def dropout_add(x: Tensor, residual: Tensor, p: float, rank: int) -> Tensor:
    """residual + dropout(x) with a mask that depends on the default generator and on `rank`."""
    return dropout_residual.bias_dropout_add(x, None, residual, dropout_residual.draw_seed(x.device, rank), p)
