"""The logical tensors of a model by what they do, whatever layer they are in: `layers.3.mlp.X` is of family `mlp.X`.

A reader takes the normalised residual stream into the heads or the feed-forward units, a writer brings these back.
"""

from __future__ import annotations

import re

WORDS, POSITIONS = "embedding.word_embeddings.weight", "embedding.position_embeddings.weight"
QKV, FC = "self_attention.query_key_value", "mlp.dense_h_to_4h"
READERS = (QKV, FC)
OUT, PROJ = "self_attention.dense", "mlp.dense_4h_to_h"
WRITERS = (OUT, PROJ)
FINAL_NORM = "final_layernorm"
NORMS = ("input_layernorm", "post_attention_layernorm", FINAL_NORM)
MODULES = (*READERS, *WRITERS, *NORMS)
FAMILIES = (WORDS, POSITIONS, *(f"{module}.{kind}" for module in MODULES for kind in ("weight", "bias")))

_LAYER = re.compile(r"layers\.(\d{1,6})\.(.+)")


def split_name(name: str) -> tuple[int | None, str]:
    """The layer (None outside the stack) and the family of a logical tensor.

    Raises:
        ValueError: the model has no such tensor.
    """
    match = _LAYER.fullmatch(name)
    layer, family = (int(match[1]), match[2]) if match else (None, name)
    outside = family.startswith(("embedding.", FINAL_NORM))
    if family not in FAMILIES or outside != (layer is None):
        raise ValueError(f"{name!r:.80} is not a tensor of the model")
    return layer, family


def layer_name(layer: int | None, family: str) -> str:
    """The inverse of `split_name`."""
    return family if layer is None else f"layers.{layer}.{family}"
