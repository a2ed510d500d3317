"""Which old layer each layer of a deeper model comes from.

- `staged` inserts blocks that are the identity at first: their projections into the residual stream are zero, weights
  and biases, and everything else is the neighbour's (as LLaMA Pro, arXiv 2401.02415, expands blocks). The logits are
  the old ones bit for bit, the old layers' gradients too; the new projections get a gradient at the first step, the
  rest of the block at the second. Zero LayerNorms, as arXiv 2203.06211 has them, would do as well, but zero gains and
  biases together with zero projections never learn.
- `stack` repeats the whole stack (G_stack, arXiv 2405.15319): new layer i is old layer i mod L. Not loss-preserving.
- `interpolate` repeats each layer in its place: new layer i is old layer floor(i L / L'). Not loss-preserving.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor

from megatron_slw.growth.operators.names import WRITERS

DepthOperator = Literal["staged", "stack", "interpolate"]
Placement = Literal["alternate", "append", "prepend"]
LOSSLESS: tuple[DepthOperator, ...] = ("staged",)


class LayerSource(NamedTuple):
    """Where a layer of the grown stack comes from."""

    layer: int
    """The old layer that it copies."""
    is_new: bool
    """Whether it is an addition, rather than the old layer itself."""


def layer_sources(old: int, new: int, operator: DepthOperator, placement: Placement) -> tuple[LayerSource, ...]:
    """The source of each of `new` layers, of which `old` are the old ones in their order.

    Args:
        old: layers before.
        new: layers afterwards, any number from `old` on.
        operator: see the top of the file.
        placement: of `staged`. `alternate` spreads the new layers evenly, each behind the layer that it copies;
            `append` puts copies of the last layers at the end, `prepend` of the first at the beginning.

    Raises:
        ValueError: the stack would shrink.
    """
    if new < old:
        raise ValueError(f"{old} layers cannot grow to {new}")
    added = new - old
    if operator == "stack":
        return tuple(LayerSource(i % old, i >= old) for i in range(new))
    if operator == "interpolate" or placement == "alternate":
        sources = [i * old // new for i in range(new)]
        return tuple(LayerSource(source, i > 0 and sources[i - 1] == source) for i, source in enumerate(sources))
    kept = [LayerSource(i, is_new=False) for i in range(old)]
    if placement == "append":
        return (*kept, *(LayerSource((i - added) % old, is_new=True) for i in range(added)))
    return (*(LayerSource(i % old, is_new=True) for i in range(added)), *kept)


def identity_tensor(family: str, tensor: Tensor) -> Tensor:
    """A tensor of a new `staged` block, made of its source's: zero where the block writes, else the same."""
    writes = any(family.startswith(f"{module}.") for module in WRITERS)
    return tensor.new_zeros(tensor.shape) if writes else tensor
