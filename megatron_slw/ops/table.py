"""Which implementation serves each operator on this machine, for people."""

from __future__ import annotations

import shutil

import torch

from megatron_slw.ops import (  # noqa: F401  each declares its operators
    bias_gelu,
    cross_entropy,
    dropout_residual,
    layer_norm,
    linear_cross_entropy,
    softmax,
)
from megatron_slw.ops.backend import Operators
from megatron_slw.ops.library import OPERATORS, has_kernel


def served_by(setting: str, operators: Operators) -> str:
    """One line for a run's log: who computes the operators, and why it is not the kernels of csrc/.

    Args:
        setting: `ops.backend`.
        operators: that it picked.
    """
    if operators.backend == "csrc":
        return f"operators: csrc, fused kernels for {operators.device_type}"
    if operators.backend == "apex":
        return "operators: plain PyTorch, LayerNorm by apex (ops.backend is apex)"
    why = f"ops.backend is {setting}"
    if setting == "auto":
        tools = ("nvcc",) if operators.device_type == "cuda" else ("g++", "c++")
        missing = not any(shutil.which(tool) for tool in tools)
        why = f"no {tools[0]} was found" if missing else f"no kernels are built for {operators.device_type}"
        why += ", see docs/kernels.md"
    return f"operators: plain PyTorch ({why})"


def table() -> str:
    """One line per operator: csrc or torch, on the CPU and on CUDA."""
    lines = [f"{'operator':34s}{'cpu':8s}cuda"]
    for name in sorted(OPERATORS):
        served = ["csrc" if has_kernel(name, device) else "torch" for device in ("cpu", "cuda")]
        lines.append(f"{name:34s}{served[0]:8s}{served[1]}")
    cuda = "with" if torch.cuda.is_available() else "without"
    return "\n".join([*lines, f"torch {torch.__version__} {cuda} a CUDA device"])
