"""The text of one document as it lies in a file: decoded, parsed, and what is wrong with it in one sentence."""

from __future__ import annotations

import json
from collections.abc import Sequence

from megatron_slw.config.errors import show
from megatron_slw.data.compressed import STANDARD_INPUT
from megatron_slw.data.inputs import PARQUET_ENDINGS, TEXT_ENDINGS

INVALID_UTF8, BROKEN_JSON, MISSING_KEY, WRONG_TYPE = "invalid_utf8", "broken_json", "missing_key", "wrong_type"
ERROR_KINDS = (INVALID_UTF8, BROKEN_JSON, MISSING_KEY, WRONG_TYPE)
_SLICE = 1 << 18
Line = bytes | tuple[bytes | None, ...]
"""A line, a text, or the values of a Parquet row under each key."""


class BadTextError(ValueError):
    """A document that cannot be used; its message is the end of a sentence that begins with the place."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        """One of ERROR_KINDS."""

    def sentence(self, path: str, line: int) -> str:
        """Return the whole sentence."""
        if path.endswith(TEXT_ENDINGS) and line == 1:
            return f"{path} {self}."
        name = "standard input" if path == STANDARD_INPUT else path
        return f"{name}, {'row' if path.endswith(PARQUET_ENDINGS) else 'line'} {line} {self}."


def documents(path: str, line: Line, keys: Sequence[str], replace: bool = False) -> list[str] | None:
    """Return the text under each key of a line of `path`, or a whole text; None for a blank line.

    Args:
        path: its ending says what a line is.
        line: from a Piece.
        keys: of the JSON object.
        replace: put U+FFFD in the place of what is no Unicode text, instead of raising.

    Raises:
        BadTextError: not UTF-8, not a JSON object, a key missing, or a value that is no text.
    """
    if isinstance(line, tuple):
        return [_cell(value, key, replace) for key, value in zip(keys, line, strict=True)]
    text = _decoded(line, replace)
    if path.endswith(TEXT_ENDINGS):
        return [text]
    if not text.strip():
        return None
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise BadTextError(BROKEN_JSON, f"is not valid JSON ({error.msg}, column {error.colno})") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        raise BadTextError(BROKEN_JSON, f"is not usable JSON ({str(error)[:60]})") from None
    if not isinstance(value, dict):
        raise BadTextError(WRONG_TYPE, f"is not a JSON object but {show(value)}")
    return [_value(value, key, replace) for key in keys]


def _decoded(data: bytes, replace: bool) -> str:
    try:
        return data.decode("utf-8", "replace" if replace else "strict")
    except UnicodeDecodeError as error:
        fault = f"is not valid UTF-8 (byte {error.start} is 0x{data[error.start]:02x})"
        raise BadTextError(INVALID_UTF8, fault) from None


def _cell(value: bytes | None, key: str, replace: bool) -> str:
    if value is None:
        raise BadTextError(WRONG_TYPE, f'has no text under "{key}" but null')
    return _decoded(value, replace)


def _value(value: dict[str, object], key: str, replace: bool) -> str:
    if key not in value:
        raise BadTextError(MISSING_KEY, f'has no key "{key}" (it has {show(list(value))}); see --json-keys')
    text = value[key]
    if not isinstance(text, str):
        raise BadTextError(WRONG_TYPE, f'has no text under "{key}" but {show(text)}')
    try:
        utf8_size(text)
    except UnicodeEncodeError as error:  # JSON can escape half of a pair
        if replace:
            return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        fault = f'has the lone surrogate {error.object[error.start]!a} under "{key}"'
        raise BadTextError(INVALID_UTF8, fault) from None
    return text


def utf8_size(text: str) -> int:
    """Bytes of a text in UTF-8, without a copy of all of it; UnicodeEncodeError where it has half of a pair."""
    if text.isascii():
        return len(text)
    return sum(len(text[start : start + _SLICE].encode("utf-8")) for start in range(0, len(text), _SLICE))
