"""Whether a dataset's token ids are ones the model knows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from megatron_slw.config.errors import ConfigError
from megatron_slw.data.indexed import IndexedDataset

_PIECE = 1 << 22  # tokens read at once


def resolve_vocab_size(dataset: IndexedDataset, vocab_size: int | None) -> int:
    """Return the model's vocabulary size: `vocab_size` where it is set, else that of the dataset's tokenizer.

    Without a sidecar there is nothing to compare `vocab_size` with: `check_ids` reads the tokens instead.

    Raises:
        ConfigError: the tokenizer has ids beyond `vocab_size`, or neither of the two is known.
    """
    tokenizer = dataset.sidecar.tokenizer if dataset.sidecar else None
    if tokenizer is None:
        if vocab_size is None:
            raise ConfigError(
                f"model.vocab_size is not set and {dataset.paths.sidecar}, which would say it, is missing "
                "or names no tokenizer. Set model.vocab_size."
            )
        return vocab_size
    if vocab_size is not None and tokenizer.vocab_size > vocab_size:
        raise ConfigError(
            f"model.vocab_size is {vocab_size:,}, but {dataset.prefix} was made with {tokenizer.name}, which "
            f"has {tokenizer.vocab_size:,} ids. Use at least {tokenizer.vocab_size}, or leave it out."
        )
    return tokenizer.vocab_size if vocab_size is None else vocab_size


def require_same_tokenizer(first: IndexedDataset, second: IndexedDataset) -> None:
    """Check that two datasets were made with the same tokenizer, as far as their sidecars tell.

    Raises:
        ConfigError: they were not; it names both datasets and tokenizers.
    """
    one = first.sidecar.tokenizer if first.sidecar else None
    other = second.sidecar.tokenizer if second.sidecar else None
    if one is None or other is None or one.sha256 == other.sha256:
        return
    raise ConfigError(
        f"{first.prefix} was made with {one.name} (SHA-256 {one.sha256[:12]}), but {second.prefix} with "
        f"{other.name} ({other.sha256[:12]}). Make both with the same tokenizer."
    )


def shared_vocab_size(datasets: Sequence[IndexedDataset], vocab_size: int | None) -> int:
    """Return the model's vocabulary size for datasets that must all have the same tokenizer.

    The ids of a dataset without a sidecar are read and checked instead; only where `vocab_size` is not set, either, do
    the sidecars of the others say how large they may be.

    Raises:
        ConfigError: two tokenizers differ, a tokenizer or an id does not fit, or nothing says the size.
    """
    vouched = [dataset for dataset in datasets if dataset.sidecar and dataset.sidecar.tokenizer]
    others = [dataset for dataset in datasets if not (dataset.sidecar and dataset.sidecar.tokenizer)]
    for dataset in vouched[1:]:
        require_same_tokenizer(vouched[0], dataset)
    size = resolve_vocab_size([*vouched, *others][0], vocab_size)
    for dataset in others:
        check_ids(dataset, size)
    return size


def check_ids(dataset: IndexedDataset, vocab_size: int) -> None:
    """Read every token, in pieces, and check that it lies in [0, vocab_size).

    Raises:
        ConfigError: naming the first document with an id outside.
    """
    for first in range(0, dataset.num_tokens, _PIECE):
        part = dataset.tokens[first : first + _PIECE]
        if int(part.min()) >= 0 and int(part.max()) < vocab_size:
            continue
        at = first + int(np.argmax((part < 0) | (part >= vocab_size)))
        raise ConfigError(
            f"{dataset.paths.bin}: document {_document_of(dataset, at)} has token id {dataset.tokens[at]} "
            f"(token {at:,} of {dataset.num_tokens:,}), but the vocabulary has {vocab_size:,}. Use the "
            "tokenizer the dataset was made with, or raise model.vocab_size."
        )


def _document_of(dataset: IndexedDataset, token: int) -> int:
    low, high = 0, dataset.num_documents
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if dataset.document_start(middle) <= token else (low, middle)
    return low
