"""Which implementation serves each operator on this machine, for people."""

from __future__ import annotations

import torch

from megatron_slw.ops import (  # noqa: F401  each declares its operators
    bias_gelu,
    cross_entropy,
    dropout_residual,
    layer_norm,
    linear_cross_entropy,
    softmax,
)
from megatron_slw.ops.library import OPERATORS, has_kernel


def table() -> str:
    """One line per operator: csrc or torch, on the CPU and on CUDA."""
    lines = [f"{'operator':34s}{'cpu':8s}cuda"]
    for name in sorted(OPERATORS):
        served = ["csrc" if has_kernel(name, device) else "torch" for device in ("cpu", "cuda")]
        lines.append(f"{name:34s}{served[0]:8s}{served[1]}")
    cuda = "with" if torch.cuda.is_available() else "without"
    return "\n".join([*lines, f"torch {torch.__version__} {cuda} a CUDA device"])
