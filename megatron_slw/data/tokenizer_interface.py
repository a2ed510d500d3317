"""What a tokenizer is to the rest of the program, and the checks every kind of tokenizer file goes through."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from megatron_slw.config.errors import ConfigError, reason
from megatron_slw.data.layout import dtype_for
from megatron_slw.data.sidecar import TokenizerInfo

EOD_NAMES = ("<|endoftext|>", "<|end_of_text|>", "<eod>", "</s>", "<eos>")
"""What an end-of-document token is called; the first that a vocabulary has is taken."""
BACKENDS = ("auto", "gigatoken")
"""--backend: the fastest library with the reference's ids among those installed with us, or gigatoken."""
LARGEST_FILE = 1 << 28
"""Bytes of a tokenizer's file: the largest known ones have a tenth of it."""
LARGEST_ID = 1 << 24
"""An id beyond it is damage; the model's embedding would have as many rows."""


class FlatIds(NamedTuple):
    """The ids of several texts, one after the other."""

    tokens: np.ndarray
    """Integers, shape (sum of lengths,)."""
    lengths: np.ndarray
    """Tokens of each text, int64, shape (texts,)."""


class Tokenizer(Protocol):
    """What a tokenizer can do."""

    @property
    def info(self) -> TokenizerInfo:
        """Type, name, SHA-256, vocabulary size and end-of-document id."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text. The texts must be valid Unicode (no lone surrogates)."""

    def encode_flat(self, texts: Sequence[str]) -> FlatIds:
        """Return the same ids as arrays, without an object for each id: the fast way for whole corpora."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids; bytes that are not UTF-8 become U+FFFD."""


@dataclass(frozen=True)
class TokenizerSpec:
    """Which tokenizer, as Megatron's flags say it."""

    type: str
    """--tokenizer-type, one of TOKENIZER_TYPES."""
    vocab_file: str | None = None
    merge_file: str | None = None
    tokenizer_model: str | None = None
    backend: str = "auto"
    """--backend, one of BACKENDS. It changes the speed, never an id."""


@dataclass(frozen=True)
class LoadedTokenizer:
    """A library's tokenizer behind the interface."""

    info: TokenizerInfo
    flat: Callable[[Sequence[str]], FlatIds]
    decode_ids: Callable[[list[int]], str]
    library: Any = None
    """The `tokenizers` object, where there is one."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        tokens, lengths = self.flat(texts)
        ids, ends = tokens.tolist(), np.cumsum(lengths).tolist()
        return [ids[end - length : end] for end, length in zip(ends, lengths.tolist(), strict=True)]

    def encode_flat(self, texts: Sequence[str]) -> FlatIds:
        return self.flat(texts)

    def decode(self, ids: Sequence[int]) -> str:
        return self.decode_ids([int(token) for token in ids])


def joined(texts: Iterable[Iterable[Any]], vocab_size: int) -> FlatIds:
    """The ids of each text as one array, in the type in which a dataset of this vocabulary keeps them.

    Args:
        texts: for each of them its ids in parts, lists or arrays.
        vocab_size: more than any id.
    """
    dtype = dtype_for(vocab_size)
    found: list[np.ndarray] = []
    lengths: list[int] = []
    for parts in texts:
        start = len(found)
        found += (np.asarray(part).astype(dtype) for part in parts)
        lengths.append(sum(map(len, found[start:])))
    return FlatIds(np.concatenate(found) if found else np.empty(0, dtype), np.array(lengths, np.int64))


def needed(spec: TokenizerSpec, field: str) -> str:
    """The value of a flag that the tokenizer's type cannot do without."""
    value: str | None = getattr(spec, field)
    if value is None:
        raise ConfigError(f"--tokenizer-type {spec.type} needs --{field.replace('_', '-')}.")
    return value


def require_file(path: Path, flag: str) -> None:
    """Refuse what is no file, or too large to be a tokenizer's."""
    if not path.is_file():
        raise ConfigError(f"{path} does not exist or is not a file. {flag} must name the tokenizer's file.")
    if (size := path.stat().st_size) > LARGEST_FILE:
        raise ConfigError(
            f"{path} has {size:,} bytes, more than the {LARGEST_FILE:,} of any tokenizer's file. {flag} must "
            "name the tokenizer's file."
        )


def parsed(path: Path, load: Callable[[], Any]) -> Any:
    """What `load` gives; the libraries raise bare Exception and others for a file they cannot read.

    A panic in Rust code arrives as a BaseException whose class cannot be imported.
    """
    try:
        return load()
    except ConfigError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ConfigError(f"{path} is not a file of this tokenizer type ({reason(error)}).") from None
