"""How one dimension of a model grows: which old entry each new entry copies.

Every width operator is made of these. An entry of the grown dimension is a copy of an old one, with a number among
the copies of that one, or it is new (source -1). What a tensor puts into copies and new entries is in `tensors`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

NEW = -1


@dataclass(frozen=True)
class Axis:
    """One dimension's growth from `size` entries to len(source)."""

    size: int
    source: Tensor
    """int64 (new size,): the old entry that each entry copies, or NEW."""
    copy: Tensor
    """int64 (new size,): the number of this copy among those of its source, from 0; of a new entry, any number."""

    @property
    def new_size(self) -> int:
        """Entries after the growth."""
        return len(self.source)

    @cached_property
    def is_new(self) -> Tensor:
        """Bool (new size,)."""
        return self.source == NEW

    @cached_property
    def has_new(self) -> bool:
        """Whether any entry copies nothing."""
        return bool(self.is_new.any())

    @cached_property
    def filled(self) -> Tensor:
        """`source` with 0 in the place of NEW, to index with."""
        return self.source.clamp(min=0)

    @cached_property
    def counts(self) -> Tensor:
        """int64 (size,): the copies of each old entry."""
        return torch.bincount(self.source[~self.is_new], minlength=self.size)

    @cached_property
    def copies(self) -> Tensor:
        """int64 (new size,): how many copies the source of each entry has; 1 for a new entry."""
        return torch.where(self.is_new, 1, self.counts[self.filled])

    @cached_property
    def tiles(self) -> int | None:
        """k where the dimension is k copies of itself, one after the other, and nothing else."""
        k, rest = divmod(self.new_size, self.size)
        plain = not rest and torch.equal(self.source, torch.arange(self.size).repeat(k))
        return k if plain else None

    @cached_property
    def equal_counts(self) -> int:
        """k where every old entry has k copies, else 0."""
        first = int(self.counts[0])
        return first if bool((self.counts == first).all()) else 0

    @property
    def is_uniform(self) -> bool:
        """Whether every old entry has as many copies and nothing is new."""
        return bool(self.equal_counts) and not self.has_new


def tiled(size: int, new_size: int) -> Axis:
    """As many whole copies as fit, one after the other, then new entries.

    Raises:
        ValueError: the dimension would shrink.
    """
    if new_size < size:
        raise ValueError(f"a dimension of {size} cannot grow to {new_size}")
    k, rest = divmod(new_size, size)
    source = torch.cat([torch.arange(size).repeat(k), torch.full((rest,), NEW)])
    copy = torch.cat([torch.arange(k).repeat_interleave(size), torch.zeros(rest, dtype=torch.int64)])
    return Axis(size, source, copy)


def selected(size: int, new_size: int, generator: torch.Generator) -> Axis:
    """Every entry once, then `new_size` - `size` copies of entries drawn at random with replacement.

    Net2Net's mapping g (arXiv 1511.05641, equation 2).
    """
    if new_size < size:
        raise ValueError(f"a dimension of {size} cannot grow to {new_size}")
    drawn = torch.randint(size, (new_size - size,), generator=generator)
    return _numbered(size, torch.cat([torch.arange(size), drawn]))


def extended(size: int, new_size: int) -> Axis:
    """Every entry once, then new entries."""
    if new_size < size:
        raise ValueError(f"a dimension of {size} cannot grow to {new_size}")
    source = torch.cat([torch.arange(size), torch.full((new_size - size,), NEW)])
    return Axis(size, source, torch.zeros_like(source))


def nested(outer: Axis, inner: Axis) -> Axis:
    """The dimension (outer, inner) flattened, such as heads x head size; new where either part is.

    A copy's number counts the copies of the outer entry first, so that number = outer copy + outer copies x inner
    copy: head count and head size may both grow.
    """
    is_new = outer.is_new[:, None] | inner.is_new[None, :]
    source = outer.filled[:, None] * inner.size + inner.filled[None, :]
    copy = outer.copy[:, None] + outer.copies[:, None] * inner.copy[None, :]
    return Axis(outer.size * inner.size, torch.where(is_new, NEW, source).flatten(), copy.flatten())


def _numbered(size: int, source: Tensor) -> Axis:
    """The axis with these sources, copies numbered in the order they stand in."""
    order = torch.argsort(source, stable=True)
    firsts = torch.searchsorted(source[order], source[order])
    copy = torch.empty_like(source)
    copy[order] = torch.arange(len(source)) - firsts
    return Axis(size, source, copy)
