"""Between text and a model's tokens: the tokenizer of a dataset, and documents as one stream to score."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from megatron_slw.config.errors import ConfigError
from megatron_slw.data.corpus import LINE_ENDINGS, BadTextError, check_inputs, documents, read_pieces
from megatron_slw.data.dataset_tokenizer import dataset_tokenizer, tokenizer_spec
from megatron_slw.data.tokenizer import Tokenizer

__all__ = ["DocumentStream", "dataset_tokenizer", "document_stream", "read_documents", "tokenizer_spec"]


def read_documents(path: str | Path, key: str = "text") -> Iterator[str]:
    """The texts of a .jsonl file (one object a line, the text under `key`) or a .txt file (one document).

    Raises:
        ConfigError: another kind of file, or a line that is no document; it names the line.
    """
    name = str(path)
    check_inputs([name])
    for piece in read_pieces([name], keys=[key]):
        for _, number, line in piece.documents:
            try:
                yield from documents(name, line, [key]) or ()
            except BadTextError as error:
                where = f"{name}, line {number}" if name.endswith(LINE_ENDINGS) else name
                raise ConfigError(f"{where} {error}.") from None


class DocumentStream(NamedTuple):
    """Tokens to score, and where they come from."""

    ids: np.ndarray
    """int32, shape (tokens + 1,)."""
    starts: np.ndarray
    """bool of the same shape: True at the first token of each document, and of what stands in front."""
    text_bytes: int
    """UTF-8 bytes of the text."""
    documents: int


def document_stream(tokenizer: Tokenizer, texts: Iterable[str]) -> DocumentStream:
    """The documents as one stream of tokens to score, as training saw them.

    Each document ends with the end-of-document token. One more stands in front as the context of the first
    token, so that every token of the text is a label. A tokenizer without such a token joins the documents as
    they are, and the very first token of all is not scored.
    """
    eod = [] if tokenizer.info.eod_id is None else [tokenizer.info.eod_id]
    parts: list[Sequence[int]] = [eod]
    text_bytes = 0
    for text in texts:
        if ids := tokenizer.encode_batch([text])[0]:
            parts.append(ids + eod)
        text_bytes += len(text.encode("utf-8"))
    stream = np.concatenate([np.asarray(part, np.int32) for part in parts])
    begin = np.cumsum([0, *map(len, parts[:-1])])
    return DocumentStream(stream, np.isin(np.arange(len(stream)), begin), text_bytes, len(parts) - 1)
