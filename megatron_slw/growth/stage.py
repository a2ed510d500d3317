"""One stage of growth, tensor by tensor: a view of a smaller model's training state as a larger one's.

Stages stack: a stage's source may be a checkpoint or another stage, and no more than the tensors asked for are made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from megatron_slw.config.schema import ModelConfig
from megatron_slw.growth.moments import grow_moment
from megatron_slw.growth.operators import names
from megatron_slw.growth.operators.depth import DepthOperator, LayerSource, Placement, identity_tensor, layer_sources
from megatron_slw.growth.operators.multiplier import Multiplier
from megatron_slw.growth.operators.tensors import grow_weight
from megatron_slw.growth.operators.width import Width, WidthOperator, width_of

WEIGHT = "weight"
POWERS = {"exp_avg": 1, "exp_avg_sq": 2, "momentum_buffer": 1}


class TensorSource(Protocol):
    """Logical tensors by key, `weight/NAME` and the like."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every key and its shape."""

    def tensor(self, key: str) -> Tensor:
        """One of them."""


@dataclass(frozen=True)
class Stage:
    """What a model becomes, and how."""

    model: ModelConfig
    """Afterwards; vocab_size is known."""
    depth_operator: DepthOperator = "staged"
    placement: Placement = "alternate"
    width_operator: WidthOperator = "staged"
    snr_db: float | None = None
    """Of the noise between copies; None for none."""


class GrownTensors:
    """The tensors of the larger model.

    Args:
        source: the smaller model's.
        old: its configuration.
        stage: what it becomes.
        seed: of everything random; each tensor's draws depend on it and on the tensor's name alone.
        multipliers: of the families; the moments follow their `gradient`.
    """

    def __init__(
        self,
        source: TensorSource,
        old: ModelConfig,
        stage: Stage,
        seed: int,
        multipliers: Mapping[str, Multiplier] | None = None,
    ) -> None:
        self.source, self.old, self.stage, self.seed = source, old, stage, seed
        self.multipliers = multipliers or {}

    @cached_property
    def width(self) -> Width:
        """How the dimensions grow."""
        return width_of(self.old, self.stage.model, self.stage.width_operator, self.stage.snr_db, self.seed)

    @cached_property
    def layers(self) -> tuple[LayerSource, ...]:
        """Where the layers come from."""
        new = self.stage.model.num_layers
        return layer_sources(self.old.num_layers, new, self.stage.depth_operator, self.stage.placement)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every key of the larger model and its shape, layer after layer."""
        kinds = list(dict.fromkeys(key.split("/", 1)[0] for key in self.source.shapes))
        return {
            f"{kind}/{name}": tensor_shape(names.split_name(name)[1], self.stage.model)
            for name in tensor_names(self.stage.model)
            for kind in kinds
        }

    def tensor(self, key: str) -> Tensor:
        """One tensor of the larger model, in the dtype of the smaller one's."""
        kind, _, name = key.partition("/")
        layer, family = names.split_name(name)
        if layer is None:
            return self._grow(kind, name, family, self.source.tensor(key))
        origin = self.layers[layer]
        if origin.is_new and kind != WEIGHT:
            return torch.zeros(self.shapes[key])
        tensor = self.source.tensor(f"{kind}/{names.layer_name(origin.layer, family)}")
        if origin.is_new and self.stage.depth_operator == "staged":
            tensor = identity_tensor(family, tensor)
        return self._grow(kind, name, family, tensor)

    def _grow(self, kind: str, name: str, family: str, tensor: Tensor) -> Tensor:
        gradient = self.multipliers.get(family, Multiplier()).gradient
        if kind != WEIGHT:
            return grow_moment(family, tensor, self.width, POWERS[kind], gradient)
        if tensor.shape == self.shapes[f"{kind}/{name}"] and not self._is_wider:
            return tensor
        return grow_weight(family, tensor, self.width, named_generator(self.seed, name))

    @cached_property
    def _is_wider(self) -> bool:
        axes = (self.width.residual, self.width.heads, self.width.ffn)
        return any(axis.new_size != axis.size for axis in axes)


def named_generator(seed: int, name: str) -> torch.Generator:
    """Random numbers that depend on the seed and the tensor's name."""
    digest = hashlib.sha256(f"growth/{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def tensor_names(model: ModelConfig) -> list[str]:
    """Every logical tensor of a model, in the order of the forward pass."""
    inside = [family for family in names.FAMILIES if not family.startswith(("embedding.", names.FINAL_NORM))]
    final = [family for family in names.FAMILIES if family.startswith(names.FINAL_NORM)]
    layers = [names.layer_name(layer, family) for layer in range(model.num_layers) for family in inside]
    return [names.WORDS, names.POSITIONS, *layers, *final]


def tensor_shape(family: str, model: ModelConfig) -> tuple[int, ...]:
    """The logical shape of a tensor."""
    module, _, kind = family.rpartition(".")
    size = model.hidden_size
    if family == names.WORDS:
        return model.padded_vocab_size, size
    if family == names.POSITIONS:
        return model.seq_length, size
    rows = {names.QKV: 3 * size, names.FC: model.ffn_size}.get(module, size)
    if kind == "bias" or module in names.NORMS:
        return (rows,)
    return rows, model.ffn_size if module == names.PROJ else size
