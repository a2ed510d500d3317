"""From what is asked for, factors or sizes, to the sizes of the grown model; what cannot be had is refused."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from megatron_slw.config.errors import ConfigError
from megatron_slw.config.schema import ModelConfig
from megatron_slw.growth.operators.width import grown_epsilon


@dataclass(frozen=True)
class Sizes:
    """What one stage asks for; None leaves a size as it is, or lets it follow from the others."""

    depth: Fraction | None = None
    """Factor on num_layers."""
    layers: int | None = None
    width: Fraction | None = None
    """Factor on hidden_size."""
    hidden_size: int | None = None
    heads: int | None = None
    ffn: int | None = None
    vocab_size: int | None = None
    seq_length: int | None = None


def grown_sizes(old: ModelConfig, sizes: Sizes) -> ModelConfig:
    """The configuration of the grown model.

    Heads keep their size unless their number is given, the feed-forward layer its ratio to the hidden size.

    Raises:
        ConfigError: nothing grows, something would shrink, or sizes do not go together.
    """
    layers = _size("--depth", "--layers", "layers", old.num_layers, sizes.depth, sizes.layers)
    hidden = _size("--width", "--hidden-size", "hidden size", old.hidden_size, sizes.width, sizes.hidden_size)
    heads = sizes.heads if sizes.heads is not None else _heads(old, hidden)
    _check_heads(old, hidden, heads)
    changes = {
        "num_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "ffn_hidden_size": sizes.ffn if sizes.ffn is not None else _feed_forward(old, hidden),
        "vocab_size": sizes.vocab_size if sizes.vocab_size is not None else old.vocab_size,
        "seq_length": sizes.seq_length if sizes.seq_length is not None else old.seq_length,
    }
    new = old.model_copy(update=changes)
    for flag, before, after in (
        ("--ffn", old.ffn_size, new.ffn_size),
        ("--vocab-size", old.vocab_size or 0, new.vocab_size or 0),
        ("--seq-length", old.seq_length, new.seq_length),
    ):
        if after < before:
            raise ConfigError(f"{flag} {after} is less than the model's {before}: a model cannot shrink. Raise it.")
    if new == old:
        raise ConfigError(
            "there is nothing to grow: give --depth, --width or one of the sizes --layers, --hidden-size, --heads, "
            "--ffn, --vocab-size, --seq-length, larger than the model's."
        )
    return new.model_copy(update={"layernorm_epsilon": grown_epsilon(old, new)})


def describe(model: ModelConfig) -> str:
    """The sizes in a few words."""
    return f"{model.num_layers} layers x {model.hidden_size}"


def _size(factor_flag: str, size_flag: str, what: str, old: int, factor: Fraction | None, size: int | None) -> int:
    if factor is not None and size is not None:
        raise ConfigError(f"{factor_flag} {float(factor):g} and {size_flag} {size} are both given. Remove one of them.")
    if factor is not None:
        grown = old * factor
        if grown.denominator != 1:
            near = round(grown)
            raise ConfigError(
                f"{factor_flag} {float(factor):g} makes {float(grown):g} of the model's {old} ({what}), which is no "
                f"whole number. Use {size_flag} {max(near, old)}."
            )
        size = int(grown)
    if size is None:
        return old
    if size < old:
        raise ConfigError(f"{size_flag} {size} is less than the model's {old}: a model cannot shrink. Raise it.")
    return size


def _heads(old: ModelConfig, hidden: int) -> int:
    if hidden % old.head_dim:
        below = hidden // old.head_dim * old.head_dim
        raise ConfigError(
            f"--hidden-size {hidden} is not a multiple of the model's head size {old.head_dim}. Use {below} or "
            f"{below + old.head_dim}, or give --heads {old.num_attention_heads} to make the heads larger."
        )
    return hidden // old.head_dim


def _check_heads(old: ModelConfig, hidden: int, heads: int) -> None:
    if heads < old.num_attention_heads:
        raise ConfigError(
            f"--heads {heads} is less than the model's {old.num_attention_heads}: a model cannot shrink. Raise it."
        )
    if hidden % heads:
        raise ConfigError(f"--heads {heads} does not divide the hidden size {hidden}. Change one of them.")
    if hidden // heads < old.head_dim:
        raise ConfigError(
            f"--heads {heads} makes heads of {hidden // heads} in a hidden size of {hidden}, but the model's have "
            f"{old.head_dim}: a head cannot shrink. Use at most {hidden // old.head_dim}, or raise the hidden size."
        )


def _feed_forward(old: ModelConfig, hidden: int) -> int | None:
    if old.ffn_hidden_size is None:
        return None
    grown = Fraction(old.ffn_hidden_size * hidden, old.hidden_size)
    if grown.denominator != 1:
        raise ConfigError(
            f"the feed-forward layer of {old.ffn_hidden_size} has no whole size at hidden size {hidden}. Give --ffn."
        )
    return int(grown)
