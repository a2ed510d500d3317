"""Declares operators under `torch.ops.megatron_slw` and loads the library of `csrc/`, where one was built.

An operator's schema, plain PyTorch implementation, fake and backward are Python. The built library registers kernels
for the CPU and CUDA under the same names; the dispatcher prefers them, and without them the plain one runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_slw.ops.choice import BUILT, FOLDER

NAMESPACE = "megatron_slw"
LIBRARY = torch.library.Library(NAMESPACE, "DEF")
OPERATORS: dict[str, Callable[..., Any]] = {}
"""The plain implementation of each declared operator, filled by `declare`."""


def declare(
    schema: str,
    plain: Callable[..., Any],
    fake: Callable[..., Any],
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., None] | None = None,
) -> Any:
    """Declare one operator and return what calls it.

    Args:
        schema: in the dispatcher's notation, with the name.
        plain: the implementation where no kernel is registered for the device.
        fake: gives empty outputs of the right shape, strides and type.
        backward: gradients of the inputs from (context, gradients of the outputs); None where there is none.
        setup_context: saves what backward needs.
    """
    name = schema.partition("(")[0]
    qualified = f"{NAMESPACE}::{name}"
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, plain, "CompositeExplicitAutograd")
    torch.library.register_fake(qualified, fake, lib=LIBRARY)
    if backward is not None:
        torch.library.register_autograd(qualified, backward, setup_context=setup_context, lib=LIBRARY)
    OPERATORS[name] = plain
    return getattr(getattr(torch.ops, NAMESPACE), name).default


def load_built(folder: Path) -> None:
    """Load what was built in `folder`. A library that does not load is an error: it was built for another machine."""
    for name in BUILT.values():
        if (folder / name).is_file():
            torch.ops.load_library(folder / name)


def has_kernel(name: str, device_type: str) -> bool:
    """Whether a built kernel serves operator `name` on "cpu" or "cuda"."""
    key = {"cpu": "CPU", "cuda": "CUDA"}.get(device_type)
    return key is not None and torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{name}", key)


def compute_dtype(x: Tensor) -> torch.dtype:
    """What the operators compute in: fp32, and fp64 for fp64."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def new(x: Tensor, shape: Sequence[int | torch.SymInt] | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """An empty contiguous tensor on the device of `x`; of its shape and type where none is given."""
    return x.new_empty(x.shape if shape is None else shape, dtype=x.dtype if dtype is None else dtype)


load_built(FOLDER)
