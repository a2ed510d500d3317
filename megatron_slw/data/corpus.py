"""Raw text files, read in pieces of about a megabyte that any process can parse."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from gzip import GzipFile
from pathlib import Path
from typing import IO, NamedTuple

from megatron_slw.config.errors import ConfigError
from megatron_slw.data.compressed import STANDARD_INPUT, decompressed, open_bytes, skip
from megatron_slw.data.document_text import BadTextError, Line, documents
from megatron_slw.data.inputs import LINE_ENDINGS, PARQUET_ENDINGS, TEXT_ENDINGS, check_inputs
from megatron_slw.data.parquet import parquet_rows

__all__ = [
    "LINE_ENDINGS",
    "PIECE_BYTES",
    "TEXT_ENDINGS",
    "BadTextError",
    "Piece",
    "Position",
    "Stretch",
    "check_inputs",
    "documents",
    "read_pieces",
]

PIECE_BYTES = 1 << 20
_LEAST_BYTES = 256
"""Of a file or row in the size of a piece: a piece must not have a million empty ones."""


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
class Stretch:
    """Consecutive documents of one file: lines, rows, or the whole of a text file."""

    path: str
    first_line: int
    """Number of the first in the file, from 1."""
    content: bytes | list[Line]
    """The documents; JSON lines as they lie in the file, for whoever encodes them to split."""
    starts: tuple[int, ...] = ()
    """Number of the first line of each document, where they are longer than a line."""

    @property
    def lines(self) -> list[Line]:
        """The documents."""
        if isinstance(self.content, list):
            return self.content
        if self.content.find(b"\n", 0, -1) < 0:
            return [self.content]  # a single line may be very long, so it is not copied
        lines: list[Line] = list(self.content.split(b"\n"))
        return lines if lines[-1] else lines[:-1]

    @property
    def numbered(self) -> Iterator[tuple[int, Line]]:
        """The documents, each with the number of the line on which it begins."""
        lines = self.lines
        return zip(self.starts or range(self.first_line, self.first_line + len(lines)), lines, strict=True)


@dataclass(frozen=True)
class Piece:
    """Consecutive documents of one file or several: what a process encodes at a time."""

    stretches: list[Stretch]
    read: int
    """Bytes read of all files, as they lie on disk, up to the end of this piece."""
    end: Position = Position()
    """Where the next piece begins."""
    size: int = 0
    """Bytes of text, about: a short document counts as `_LEAST_BYTES`."""

    @property
    def documents(self) -> Iterator[tuple[str, int, Line]]:
        """File and first line of each document, and the document."""
        for stretch in self.stretches:
            for number, line in stretch.numbered:
                yield stretch.path, number, line


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
        piece_bytes: of text. Where pieces end depends on nothing else. Short files share a piece.
        start: the `end` of a piece, to get those after it.
        keys: columns to read of Parquet files.
        blank_lines: a text file is documents with blank lines between them, not one document.

    Raises:
        ConfigError: a file cannot be read, or a compressed one is damaged.
    """
    before = sum(Path(path).stat().st_size for path in paths[: start.file] if path != STANDARD_INPUT)
    stretches: list[Stretch] = []
    size = read = 0
    end = start
    for file in range(start.file, len(paths)):
        path = paths[file]
        begin = start if file == start.file else Position(file)
        try:
            with open_bytes(path) as raw:
                take = _taker(path, raw, begin, keys, blank_lines)
                while (taken := take(piece_bytes - size)) is not None:
                    stretches.append(taken.stretch)
                    size += taken.size
                    read, end = before + _told(path, raw, taken.offset), Position(file, taken.offset, taken.line)
                    del taken
                    if size >= piece_bytes:
                        yield Piece(stretches, read, end, size)
                        stretches, size = [], 0
                before += 0 if path == STANDARD_INPUT else os.fstat(raw.fileno()).st_size
        except (OSError, EOFError, zlib.error) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(f"{path} cannot be read: {reason}.") from None
    if stretches:
        yield Piece(stretches, read, end, size)


class _Taken(NamedTuple):
    """The next documents of a file."""

    stretch: Stretch
    size: int
    """As `Piece.size`."""
    offset: int
    line: int
    """As in the `Position` after them."""


_Take = Callable[[int], _Taken | None]
"""Take documents of a file until they have at least so many bytes, or the file ends; None where none is left."""
_Record = tuple[int, Line, int, tuple[int, int]]
"""Number of its first line, the document, its size in bytes, and offset and line number after it."""


def _taker(path: str, raw: IO[bytes], begin: Position, keys: Sequence[str], blank_lines: bool) -> _Take:
    """The documents of a file from `begin` on."""
    offset = begin.offset
    if path.endswith(PARQUET_ENDINGS):
        return _take_records(path, _rows(path, raw, keys, offset), False)
    text = decompressed(path, raw)
    skip(text, offset)
    if path.endswith(TEXT_ENDINGS):
        records = _paragraphs(text, offset, begin.line) if blank_lines else _whole(text, offset)
        return _take_records(path, records, blank_lines)
    return _take_lines(path, text, begin)


def _take_lines(path: str, text: IO[bytes] | GzipFile, begin: Position) -> _Take:
    offset, line = begin.offset, begin.line

    def take(wanted: int) -> _Taken | None:
        nonlocal offset, line
        content = text.read(wanted)
        if not content:
            return None
        if not content.endswith(b"\n"):
            content += text.readline()
        first, size = line, len(content)
        offset += size
        line += content.count(b"\n") + (not content.endswith(b"\n"))
        return _Taken(Stretch(path, first, content), size, offset, line)

    return take


def _take_records(path: str, records: Iterator[_Record], with_starts: bool) -> _Take:
    def take(wanted: int) -> _Taken | None:
        lines: list[Line] = []
        starts: list[int] = []
        size, end = 0, (0, 1)
        for number, line, length, after in records:
            lines.append(line)
            starts.append(number)
            size, end = size + max(length, _LEAST_BYTES), after
            if size >= wanted:
                break
        if not lines:
            return None
        return _Taken(Stretch(path, starts[0], lines, tuple(starts) if with_starts else ()), size, *end)

    return take


def _rows(path: str, raw: IO[bytes], keys: Sequence[str], first: int) -> Iterator[_Record]:
    for row, values in enumerate(parquet_rows(path, raw, keys, first), first + 1):
        yield row, values, sum(len(value or b"") for value in values), (row, row + 1)


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
