"""LAMBADA: the last word of a passage, given the rest of it.

The published code of staged training scores the last *token*, with dropout on. Here, as in lm-evaluation-harness, the
whole word counts: it is right if every token of it is the most probable one given those before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from megatron_slw.config.errors import ConfigError
from megatron_slw.data.corpus import BadTextError, documents, read_pieces
from megatron_slw.data.inputs import LINE_ENDINGS, check_inputs
from megatron_slw.data.tokenizer import Tokenizer
from megatron_slw.evaluation.rows import Row

PAIR = ["context", "continuation"]
PASSAGE = ["text"]


class Example(NamedTuple):
    """A passage; joined, the two parts are its text."""

    context: str
    """Without white space at its end."""
    word: str
    """The last word, with the white space before it."""
    line: int
    """In the file."""


def read_examples(path: str | Path) -> Iterator[Example]:
    """The examples of a .jsonl: objects with context and continuation, or with the whole passage as text.

    Raises:
        ConfigError: another kind of file, or a line that is no example; it names the line.
    """
    name = str(path)
    check_inputs([name])
    if not name.endswith(LINE_ENDINGS):
        raise ConfigError(f'{name} is no LAMBADA file: that is a .jsonl of objects with "context" and "continuation".')
    keys: list[str] | None = None
    for piece in read_pieces([name]):
        for _, number, line in piece.documents:
            try:
                keys = keys or _keys(name, line)
                values = documents(name, line, keys) if keys else None
            except BadTextError as error:
                raise ConfigError(f"{name}, line {number} {str(error).partition(';')[0]}.") from None
            if values is not None:
                yield _example(name, number, values)


def _keys(name: str, line: bytes | tuple[bytes | None, ...]) -> list[str] | None:
    """Those of the first line that is not blank."""
    try:
        return PASSAGE if documents(name, line, PASSAGE) is not None else None
    except BadTextError as error:
        if error.kind != "missing_key":
            raise
        return PAIR


def _example(name: str, number: int, values: list[str]) -> Example:
    if len(values) == 2:
        text = f"{values[0]} {values[1]}"
        context = values[0].rstrip()
    else:
        text = values[0].rstrip()
        context = text.rpartition(" ")[0].rstrip()
    if not context or not text[len(context) :].strip():
        raise ConfigError(f"{name}, line {number} has no word after a context: it is no LAMBADA example.")
    return Example(context, text[len(context) :], number)


def example_rows(tokenizer: Tokenizer, examples: Sequence[Example], length: int, name: str) -> list[Row]:
    """The examples as rows whose last word counts, each with at most `length` tokens of context before it.

    The passage is encoded as a whole, and its tokens after those of the context alone are the word's. No
    end-of-document token stands in front: a passage begins in the middle of a book.

    Raises:
        ConfigError: a word has no token of its own, or more than the model can read.
    """
    whole = tokenizer.encode_batch([example.context + example.word for example in examples])
    contexts = tokenizer.encode_batch([example.context for example in examples])
    rows = []
    for example, ids, context in zip(examples, whole, contexts, strict=True):
        word = len(ids) - len(context)
        if not 1 <= word <= length or not context:
            raise ConfigError(
                f"{name}, line {example.line} has a last word of {word} tokens after {len(context)} of context: it "
                f"needs at least one of each, and at most the model's length {length}."
            )
        kept = np.asarray(ids[-(length + 1) :], np.int64)
        rows.append(Row(kept, len(kept) - 1 - word))
    return rows
