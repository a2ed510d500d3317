"""Documents of a dataset as text, and the checks that read every byte of it."""

from __future__ import annotations

from pathlib import Path

from megatron_slw.config.errors import ConfigError
from megatron_slw.data.dataset_tokenizer import dataset_tokenizer
from megatron_slw.data.indexed import IndexedDataset, verify_checksums
from megatron_slw.data.vocabulary import check_ids

_ESCAPED = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}


def decode_document(dataset: IndexedDataset, number: int, tokenizer_dir: str | Path | None = None) -> str:
    """Return the text of document `number`, counted from 0.

    Raises:
        ConfigError: there is no such document, or the tokenizer is not known or not found.
    """
    if not 0 <= number < dataset.num_documents:
        raise ConfigError(
            f"--document is {number}, but {dataset.prefix} has {dataset.num_documents:,} documents, counted from 0."
        )
    if dataset.sidecar is None or dataset.sidecar.tokenizer is None:
        raise ConfigError(
            f"{dataset.paths.sidecar} is missing or names no tokenizer: --document has none to decode with."
        )
    ids = dataset.document(number)
    check_range(dataset, number, dataset.sidecar.tokenizer.vocab_size)
    return dataset_tokenizer(dataset.prefix, tokenizer_dir).decode(ids.tolist())


def check_range(dataset: IndexedDataset, number: int, vocab_size: int) -> None:
    """Refuse a document with ids that the libraries cannot decode."""
    ids = dataset.document(number)
    if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size:
        raise ConfigError(
            f"{dataset.paths.bin}: document {number} has token ids {ids.min()} to {ids.max()}, but the vocabulary "
            f"has {vocab_size:,}. Run --verify."
        )


def printable(text: str) -> str:
    """`text` with its control characters spelled out: a document must not command the terminal that shows it."""
    return text.translate(_ESCAPED)


def verify(dataset: IndexedDataset) -> str:
    """Read all of the dataset: both SHA-256s, then every id against the vocabulary; return what was checked.

    The structure of the index was checked when the dataset was opened.

    Raises:
        ConfigError: naming the file that differs, or the first document with an id outside the vocabulary.
    """
    verify_checksums(dataset)
    tokenizer = dataset.sidecar.tokenizer if dataset.sidecar else None
    if tokenizer is None:
        raise ConfigError(f"{dataset.paths.sidecar} names no tokenizer: there is no vocabulary to check ids against.")
    check_ids(dataset, tokenizer.vocab_size)
    return (
        f"verified: SHA-256 of .bin and .idx, index of {dataset.num_documents:,} documents, {dataset.num_tokens:,} ids "
        f"below {tokenizer.vocab_size:,}"
    )
