"""Raw text files, read in pieces of about a megabyte that any process can parse."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from megatron_slw.config.errors import ConfigError, show

PIECE_BYTES = 1 << 20
LINE_ENDINGS = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
"""Files with one JSON object a line."""
TEXT_ENDINGS = (".txt",)
"""Files that are one document each."""


@dataclass(frozen=True)
class Piece:
    """Consecutive lines of a file, or the whole of a text file."""

    path: str
    first_line: int
    """Its number in the file, from 1."""
    lines: list[bytes]
    read: int
    """Bytes read of all files, as they lie on disk, up to the end of this piece."""


class BadTextError(ValueError):
    """A document that cannot be used; its message is the end of a sentence that begins with the place."""

    def sentence(self, path: str, line: int) -> str:
        """Return the whole sentence."""
        return f"{path} {self}." if path.endswith(TEXT_ENDINGS) else f"{path}, line {line} {self}."


def check_inputs(paths: Sequence[str]) -> int:
    """Return the size of all files in bytes.

    Raises:
        ConfigError: one does not exist or has an ending that is not known.
    """
    total = 0
    for path in paths:
        if not path.endswith(LINE_ENDINGS + TEXT_ENDINGS):
            raise ConfigError(f"{path}: --input must end in {', '.join(LINE_ENDINGS + TEXT_ENDINGS)}.")
        if not Path(path).is_file():
            raise ConfigError(f"{path} does not exist or is not a file. --input must name text files.")
        total += Path(path).stat().st_size
    return total


def read_pieces(paths: Sequence[str], piece_bytes: int = PIECE_BYTES) -> Iterator[Piece]:
    """Yield the files in pieces, in order; a piece ends with the line that brings it to `piece_bytes`.

    Holds one piece at a time, so memory is bounded by the piece and the longest line.

    Raises:
        ConfigError: a file cannot be read, or a compressed one is damaged.
    """
    before = 0
    for path in paths:
        try:
            with open(path, "rb") as raw:
                yield from _file_pieces(path, raw, piece_bytes, before)
                before += raw.tell()
        except (OSError, EOFError, zlib.error) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(f"{path} cannot be read: {reason}.") from None


def documents(path: str, line: bytes, keys: Sequence[str]) -> list[str] | None:
    """Return the text under each key of a line of `path`, or a whole text file; None for a blank line.

    Raises:
        BadTextError: not UTF-8, not a JSON object, a key missing, or a value that is no text.
    """
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadTextError(f"is not valid UTF-8 (byte {error.start} is 0x{line[error.start]:02x})") from None
    if path.endswith(TEXT_ENDINGS):
        return [text]
    if not text.strip():
        return None
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise BadTextError(f"is not valid JSON ({error.msg}, column {error.colno})") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        raise BadTextError(f"is not usable JSON ({str(error)[:60]})") from None
    if not isinstance(value, dict):
        raise BadTextError(f"is not a JSON object but {show(value)}")
    return [_value(value, key) for key in keys]


def _value(value: dict[str, object], key: str) -> str:
    if key not in value:
        raise BadTextError(f'has no key "{key}" (it has {show(list(value))}); see --json-keys')
    text = value[key]
    if not isinstance(text, str):
        raise BadTextError(f'has no text under "{key}" but {show(text)}')
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:  # JSON can escape half of a pair
            raise BadTextError(f'has the lone surrogate {text[error.start]!a} under "{key}"') from None
    return text


def _file_pieces(path: str, raw: IO[bytes], piece_bytes: int, before: int) -> Iterator[Piece]:
    if path.endswith(TEXT_ENDINGS):
        yield Piece(path, 1, [raw.read()], before + raw.tell())
        return
    first, lines, size = 1, [], 0
    for line in gzip.open(raw) if path.endswith(".gz") else raw:
        lines.append(line)
        size += len(line)
        if size >= piece_bytes:
            yield Piece(path, first, lines, before + raw.tell())
            first, lines, size = first + len(lines), [], 0
    if lines:
        yield Piece(path, first, lines, before + raw.tell())
