"""What a batch of somebody else's loop holds: named tensors, and where in each of them the sequence lies.

A batch is a mapping, or a tuple or list such as (x, y). A tensor is anything with a shape, a dtype and slicing, so
torch's and numpy's are treated alike and neither is imported. B rows, T positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Name = str | int
"""A key of a mapping or field of a named tuple; the place in a plain tuple or list."""


def is_tensor(value: Any) -> bool:
    """Whether `value` is an array of torch, numpy or their like."""
    return all(hasattr(value, name) for name in ("shape", "ndim", "dtype"))


def members(batch: Any) -> dict[Name, Any]:
    """What `batch` holds, by name.

    Raises:
        ValueError: it is no mapping, tuple or list, or a member is one that holds tensors.
    """
    if isinstance(batch, Mapping):
        found = dict(batch)
    elif isinstance(batch, tuple | list):
        found = dict(zip(getattr(batch, "_fields", range(len(batch))), batch, strict=True))
    else:
        raise ValueError(f"a batch must be a mapping, a tuple or a list of tensors, not a {type(batch).__name__}")
    for name, value in found.items():
        inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple | list) else ()
        if any(is_tensor(part) for part in inner):
            raise ValueError(f"batch[{name!r}] is a {type(value).__name__} of tensors: pass a flat batch, or the parts")
    if not any(is_tensor(value) and value.ndim >= 2 for value in found.values()):
        raise ValueError("no tensor of the batch has two dimensions or more, so there are no sequences in it")
    return found


def rebuilt(batch: Any, values: dict[Name, Any]) -> Any:
    """`values` as a batch of the kind of `batch`: a dict for any mapping, else its own type."""
    if isinstance(batch, Mapping):
        return values
    return type(batch)(*values.values()) if hasattr(batch, "_fields") else type(batch)(values.values())


def is_mask(name: Name, tensor: Any) -> bool:
    """Whether a tensor of three dimensions or more says which position attends to which, in its last two.

    The name tells ("mask" or "bias" is in it); without one the shape (..., T, T) does, if there are four dimensions
    or whole numbers: (B, T, T) of floats are more likely features.
    """
    if tensor.ndim < 3:
        return False
    if isinstance(name, str) and ("mask" in name or "bias" in name):
        return True
    whole = any(kind in str(tensor.dtype) for kind in ("bool", "int"))
    return tensor.shape[-1] == tensor.shape[-2] and (whole or (isinstance(name, int) and tensor.ndim > 3))


def sequence_axes(name: Name, value: Any) -> tuple[int, ...]:
    """The dimensions along which the positions lie: none of a vector, both of a mask that are not broadcast."""
    if not is_tensor(value) or value.ndim < 2:
        return ()
    if not is_mask(name, value):
        return (1,)
    return tuple(axis for axis in (value.ndim - 2, value.ndim - 1) if value.shape[axis] > 1)


def window(ndim: int, axes: tuple[int, ...], start: int, stop: int) -> tuple[slice, ...]:
    """The index of positions [start, stop) along each of `axes`."""
    return tuple(slice(start, stop) if axis in axes else slice(None) for axis in range(ndim))
