"""Raw text files, read in pieces of about a megabyte that any process can parse."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from gzip import GzipFile
from pathlib import Path
from typing import IO

from megatron_slw.config.errors import ConfigError, show
from megatron_slw.data.compressed import STANDARD_INPUT, decompressed, open_bytes, skip
from megatron_slw.data.inputs import LINE_ENDINGS, PARQUET_ENDINGS, TEXT_ENDINGS, check_inputs
from megatron_slw.data.parquet import parquet_rows

__all__ = [
    "LINE_ENDINGS",
    "PIECE_BYTES",
    "TEXT_ENDINGS",
    "BadTextError",
    "Piece",
    "Position",
    "check_inputs",
    "documents",
    "read_pieces",
]

PIECE_BYTES = 1 << 20
INVALID_UTF8, BROKEN_JSON, MISSING_KEY, WRONG_TYPE = "invalid_utf8", "broken_json", "missing_key", "wrong_type"
ERROR_KINDS = (INVALID_UTF8, BROKEN_JSON, MISSING_KEY, WRONG_TYPE)
Line = bytes | tuple[bytes | None, ...]
"""A line, a text, or the values of a Parquet row under each key."""


@dataclass(frozen=True)
class Position:
    """A place between two documents, where reading can go on."""

    file: int = 0
    """Index of the file."""
    offset: int = 0
    """Bytes of its text before the place, decompressed; of a Parquet file, rows."""
    line: int = 1
    """Number of the line that follows."""


@dataclass(frozen=True)
class Piece:
    """Consecutive documents of a file: lines, rows, or the whole of a text file."""

    path: str
    first_line: int
    """Number of the first in the file, from 1."""
    lines: list[Line]
    read: int
    """Bytes read of all files, as they lie on disk, up to the end of this piece."""
    end: Position = Position()
    """Where the next piece begins."""
    size: int = 0
    """Bytes of text."""
    starts: tuple[int, ...] = ()
    """Number of the first line of each document, where they are longer than a line."""

    @property
    def numbers(self) -> Sequence[int]:
        """The number of the line on which each document begins."""
        return self.starts or range(self.first_line, self.first_line + len(self.lines))


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


def read_pieces(
    paths: Sequence[str],
    piece_bytes: int = PIECE_BYTES,
    start: Position = Position(),  # noqa: B008 (frozen)
    keys: Sequence[str] = ("text",),
    blank_lines: bool = False,
) -> Iterator[Piece]:
    """Yield the files in pieces, in order; a piece ends with the document that brings it to `piece_bytes`.

    Holds one piece at a time, so memory is bounded by the piece and the longest document.

    Args:
        paths: files, or "-" for JSON lines on standard input.
        piece_bytes: of text. Where pieces end depends on nothing else.
        start: the `end` of a piece, to get those after it.
        keys: columns to read of Parquet files.
        blank_lines: a text file is documents with blank lines between them, not one document.

    Raises:
        ConfigError: a file cannot be read, or a compressed one is damaged.
    """
    before = sum(Path(path).stat().st_size for path in paths[: start.file] if path != STANDARD_INPUT)
    for file in range(start.file, len(paths)):
        path = paths[file]
        begin = start if file == start.file else Position(file)
        try:
            with open_bytes(path) as raw:
                for first, lines, numbers, end, size in _gathered(
                    _records(path, raw, begin, keys, blank_lines), piece_bytes
                ):
                    place = Position(file, *end)
                    starts = tuple(numbers) if blank_lines and path.endswith(TEXT_ENDINGS) else ()
                    yield Piece(path, first, lines, before + _told(path, raw, end[0]), place, size, starts)
                before += 0 if path == STANDARD_INPUT else Path(path).stat().st_size
        except (OSError, EOFError, zlib.error) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(f"{path} cannot be read: {reason}.") from None


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
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:  # JSON can escape half of a pair
            if replace:
                return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            fault = f'has the lone surrogate {text[error.start]!a} under "{key}"'
            raise BadTextError(INVALID_UTF8, fault) from None
    return text


_Record = tuple[int, Line, int, tuple[int, int]]
"""Number of its first line, the document, its size in bytes, and offset and line number after it."""


def _gathered(
    records: Iterator[_Record], piece_bytes: int
) -> Iterator[tuple[int, list[Line], list[int], tuple[int, int], int]]:
    """Records in groups of at least `piece_bytes`: first line, documents, their line numbers, end, size."""
    lines: list[Line] = []
    numbers: list[int] = []
    size, end = 0, (0, 1)
    for number, line, length, end in records:
        lines.append(line)
        numbers.append(number)
        size += length
        if size >= piece_bytes:
            yield numbers[0], lines, numbers, end, size
            lines, numbers, size = [], [], 0
    if lines:
        yield numbers[0], lines, numbers, end, size


def _records(path: str, raw: IO[bytes], begin: Position, keys: Sequence[str], blank_lines: bool) -> Iterator[_Record]:
    """The documents of a file from `begin` on."""
    offset = begin.offset
    if path.endswith(PARQUET_ENDINGS):
        for row, values in enumerate(parquet_rows(path, raw, keys, offset), offset + 1):
            yield row, values, sum(len(value or b"") for value in values), (row, row + 1)
        return
    text = decompressed(path, raw)
    skip(text, offset)
    if path.endswith(TEXT_ENDINGS):
        yield from _paragraphs(text, offset, begin.line) if blank_lines else _whole(text, offset)
        return
    for number, line in enumerate(text, begin.line):
        offset += len(line)
        yield number, line, len(line), (offset, number + 1)


def _whole(text: IO[bytes] | GzipFile, offset: int) -> Iterator[_Record]:
    """A text file as one document, nothing where it was read already."""
    data = text.read()
    if not offset:
        yield 1, data, len(data), (max(len(data), 1), 1)


def _paragraphs(text: IO[bytes] | GzipFile, offset: int, line: int) -> Iterator[_Record]:
    """The documents of a text file that blank lines (of nothing but white space) part, without those lines."""
    lines: list[bytes] = []
    first = number = line
    for number, content in enumerate(text, line):
        offset += len(content)
        if content.strip():
            first = first if lines else number
            lines.append(content)
        elif lines:
            document = b"".join(lines)
            yield first, document, len(document), (offset, number + 1)
            lines = []
    if lines:
        document = b"".join(lines)
        yield first, document, len(document), (offset, number + 1)


def _told(path: str, raw: IO[bytes], end: int) -> int:
    """Bytes read of a file up to the end of a piece; of a Parquet file, which is read crosswise, about."""
    return end if path == STANDARD_INPUT else raw.tell()
