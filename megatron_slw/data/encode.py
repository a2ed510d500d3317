"""A piece of text to token ids."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from megatron_slw.data.corpus import BadTextError, Piece, Position, documents
from megatron_slw.data.document_text import INVALID_UTF8, Line, utf8_size
from megatron_slw.data.layout import dtype_for
from megatron_slw.data.tokenizer import Tokenizer, TokenizerSpec

ON_ERROR = ("fail", "skip", "replace")
_NOTES = 20


@dataclass(frozen=True)
class EncodeSettings:
    """What every worker must know."""

    tokenizer: TokenizerSpec
    json_keys: tuple[str, ...] = ("text",)
    append_eod: bool = False
    on_error: str = "fail"
    """One of ON_ERROR."""


@dataclass(frozen=True)
class Encoded:
    """The documents of one key in one piece."""

    tokens: np.ndarray
    lengths: np.ndarray
    text_bytes: int
    empty: int


@dataclass
class EncodedPiece:
    """What becomes of a piece."""

    read: int
    end: Position
    keys: list[Encoded] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)
    """Documents left out, by the kind of what is wrong with them."""
    replaced: int = 0
    """Documents with U+FFFD put in."""
    notes: list[str] = field(default_factory=list)
    """A sentence for each of the first of these, with file and line."""
    fault: str | None = None
    """With --on-error fail, the first bad document; then there are no keys."""


def encode_piece(settings: EncodeSettings, tokenizer: Tokenizer, piece: Piece) -> EncodedPiece:
    """Encode the documents of a piece, for each key; takes them out of it, since a document may be very long."""
    result = EncodedPiece(piece.read, piece.end)
    texts: list[list[str]] = [[] for _ in settings.json_keys]
    piece.stretches.reverse()
    while piece.stretches:
        stretch = piece.stretches.pop()
        for number, line in stretch.numbered:
            parts = _texts(settings, stretch.path, number, line, result)
            if result.fault is not None:
                return result
            for column, text in zip(texts, parts or (), strict=False):
                column.append(text)
        del stretch, number, line, parts
    eod = tokenizer.info.eod_id if settings.append_eod else None
    dtype = dtype_for(tokenizer.info.vocab_size)
    result.keys = [_encode(tokenizer, column, eod, dtype) for column in texts]
    return result


def _texts(settings: EncodeSettings, path: str, number: int, line: Line, result: EncodedPiece) -> list[str] | None:
    """The texts of one line; what is wrong with it goes into `result`."""
    try:
        return documents(path, line, settings.json_keys)
    except BadTextError as error:
        fault = error
    if settings.on_error == "fail":
        result.fault = fault.sentence(path, number)
        return None
    action, texts = "skipped", None
    if settings.on_error == "replace" and fault.kind == INVALID_UTF8:
        try:
            action, texts = "replaced", documents(path, line, settings.json_keys, replace=True)
            result.replaced += 1
        except BadTextError as error:  # more is wrong with it than its bytes
            action, fault = "skipped", error
    if action == "skipped":
        result.skipped[fault.kind] = result.skipped.get(fault.kind, 0) + 1
    if len(result.notes) < _NOTES:
        result.notes.append(f"{action}: {fault.sentence(path, number)}")
    return texts


def _encode(tokenizer: Tokenizer, texts: list[str], eod: int | None, dtype: np.dtype[np.integer]) -> Encoded:
    text_bytes = sum(map(utf8_size, texts))
    tokens, lengths = tokenizer.encode_flat(texts)
    tokens = tokens.astype(dtype, copy=False)
    kept = lengths[lengths > 0]
    empty = len(lengths) - len(kept)
    if eod is None:
        return Encoded(tokens, kept, text_bytes, empty)
    return Encoded(np.insert(tokens, np.cumsum(kept), eod), kept + 1, text_bytes, empty)
