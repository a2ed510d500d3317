"""GPT-2 as Hugging Face keeps it and as we do: settings, names and tensors, both ways. No files.

Theirs differ from ours in four ways: the vocabulary is not padded, matrices stand transposed (Conv1D keeps (in, out)),
the rows of query, key and value are (q|k|v, head, D) where ours are (head, q|k|v, D), and the output head is the token
table, not stored again.

Legend: C hidden size, H heads, D head size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from megatron_slw.config.errors import ConfigError, listing, show, validate
from megatron_slw.config.schema import ModelConfig
from megatron_slw.growth.operators import names
from megatron_slw.growth.stage import tensor_names, tensor_shape

PREFIX = "transformer."
HEAD = "lm_head.weight"
WORDS = f"{PREFIX}wte.weight"
_MODULES = {
    "input_layernorm": "ln_1", names.QKV: "attn.c_attn", names.OUT: "attn.c_proj",
    "post_attention_layernorm": "ln_2", names.FC: "mlp.c_fc", names.PROJ: "mlp.c_proj", names.FINAL_NORM: "ln_f",
}  # fmt: skip
_TABLES = {names.WORDS: "wte.weight", names.POSITIONS: "wpe.weight"}
_SIZES = {
    "num_layers": ("n_layer", 12), "hidden_size": ("n_embd", 768), "num_attention_heads": ("n_head", 12),
    "seq_length": ("n_positions", 1024), "vocab_size": ("vocab_size", 50257), "ffn_hidden_size": ("n_inner", None),
    "layernorm_epsilon": ("layer_norm_epsilon", 1e-5),
}  # fmt: skip
"""Our settings, theirs, and what theirs are where config.json leaves them out."""
_ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}
_FIXED = {
    "add_cross_attention": False, "reorder_and_upcast_attn": False, "scale_attn_by_inverse_layer_idx": False,
    "scale_attn_weights": True, "tie_word_embeddings": True,
}  # fmt: skip
"""Settings of theirs that our model has no other value of."""


def gpt2_settings(model: ModelConfig, eod_id: int | None, dtype: str) -> dict[str, Any]:
    """config.json for a model.

    Args:
        model: with a known vocab_size.
        eod_id: the token that ends documents; None where the tokenizer has none.
        dtype: of the weights, `float32`.
    """
    theirs = {value: key for key, value in reversed(_ACTIVATIONS.items())}
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        **{name: getattr(model, ours) for ours, (name, _) in _SIZES.items()},
        "activation_function": theirs[model.activation],
        "attn_pdrop": model.attention_dropout,
        "embd_pdrop": model.hidden_dropout,
        "resid_pdrop": model.hidden_dropout,
        "initializer_range": model.init_method_std,
        **_FIXED,
        "bos_token_id": eod_id,
        "eos_token_id": eod_id,
        "use_cache": True,
        "dtype": dtype,
        "torch_dtype": dtype,  # what versions before 5 read
    }


def model_of(settings: Mapping[str, Any]) -> ModelConfig:
    """The model that a config.json describes; dropout and init_method_std, which only training needs, are ours.

    Raises:
        ConfigError: it is no GPT-2, or one that computes something our model does not.
    """
    kind = settings.get("model_type")
    if kind != "gpt2":
        raise ConfigError(f"model_type is {show(kind)}, but only gpt2 can be imported.")
    for name, value in _FIXED.items():
        found = settings.get(name, value)
        if found is not value:
            raise ConfigError(f"{name} is {show(found)}, but a model here can only have {show(value)}.")
    if settings.get("quantization_config") is not None:
        raise ConfigError("quantization_config is set, but quantized weights cannot be trained. Import the original.")
    activation = settings.get("activation_function", "gelu_new")
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        raise ConfigError(f"activation_function is {show(activation)}, but must be {listing(_ACTIVATIONS)}.")
    sizes = {ours: settings.get(name, default) for ours, (name, default) in _SIZES.items()}
    model = validate(ModelConfig, sizes | {"activation": _ACTIVATIONS[activation]}, "", _PLACES)
    if model.vocab_size is None:
        raise ConfigError("vocab_size is null.")
    if model.hidden_size % model.num_attention_heads:
        raise ConfigError(f"n_head {model.num_attention_heads} does not divide n_embd {model.hidden_size}.")
    return model


_PLACES = {ours: f"{name}, our model" for ours, (name, _) in _SIZES.items()}


def gpt2_name(name: str) -> str:
    """What they call one of our tensors."""
    layer, family = names.split_name(name)
    if family in _TABLES:
        return PREFIX + _TABLES[family]
    module, _, part = family.rpartition(".")
    inside = f"{_MODULES[module]}.{part}"
    return PREFIX + (inside if layer is None else f"h.{layer}.{inside}")


def our_names(model: ModelConfig) -> dict[str, str]:
    """Ours by theirs, in the order in which transformers writes a file."""
    return dict(sorted((gpt2_name(name), name) for name in tensor_names(model)))


def gpt2_shape(name: str, model: ModelConfig) -> tuple[int, ...]:
    """The shape that one of our tensors has with them."""
    _, family = names.split_name(name)
    if family == names.WORDS:
        return model.vocab_size or 0, model.hidden_size
    shape = tensor_shape(family, model)
    return shape if family == names.POSITIONS else shape[::-1]


def to_gpt2(name: str, tensor: Tensor, model: ModelConfig) -> Tensor:
    """Their tensor for ours called `name`."""
    _, family = names.split_name(name)
    if family == names.WORDS:
        return tensor[: model.vocab_size]
    if family.startswith(names.QKV):  # (H, 3, D, ...) -> (3, H, D, ...)
        parts = tensor.view(model.num_attention_heads, 3, model.head_dim, *tensor.shape[1:])
        tensor = parts.transpose(0, 1).reshape(tensor.shape)
    return tensor if family == names.POSITIONS or tensor.dim() == 1 else tensor.T


def from_gpt2(name: str, tensor: Tensor, model: ModelConfig) -> Tensor:
    """The inverse of `to_gpt2`; the padding rows of the vocabulary, which no loss sees, are zero."""
    _, family = names.split_name(name)
    if family == names.WORDS:
        return F.pad(tensor, (0, 0, 0, model.padded_vocab_size - tensor.size(0)))
    tensor = tensor if family == names.POSITIONS or tensor.dim() == 1 else tensor.T
    if family.startswith(names.QKV):
        parts = tensor.reshape(3, model.num_attention_heads, model.head_dim, *tensor.shape[1:])
        tensor = parts.transpose(0, 1).reshape(tensor.shape)
    return tensor
