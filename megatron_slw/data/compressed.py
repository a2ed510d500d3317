"""Files as streams of bytes, decompressed by their ending; one that was cut short is an error, not a shorter text."""

from __future__ import annotations

import gzip
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

STANDARD_INPUT = "-"
COMPRESSED = (".gz", ".zst")
_ZSTD_READ = 2048
"""Compressed bytes at a time. A few bytes can stand for 128 KB, so this bounds what one step gives."""
_SKIP = 1 << 20


class ZstdFile(io.RawIOBase):
    """The text of a .zst file of one or several frames.

    zstandard's own stream reader ends quietly where the file does; this one knows when a frame is open.

    Raises:
        OSError: while reading, where the data is damaged.
        EOFError: where the file ends inside a frame.
    """

    def __init__(self, raw: IO[bytes]) -> None:
        import zstandard

        self._library = zstandard
        self._raw = raw
        self._frame: Any = None
        self._rest = b""
        self._text = memoryview(b"")

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer`; 0 at the end of the last frame."""
        while not self._text:
            data = self._rest or self._raw.read(_ZSTD_READ)
            if not data:
                if self._frame is not None:
                    raise EOFError("the file ends inside a zstd frame: it was cut short")
                return 0
            self._text = memoryview(self._decompress(data))
        view = memoryview(buffer).cast("B")
        size = min(len(view), len(self._text))
        view[:size] = self._text[:size]
        self._text = self._text[size:]
        return size

    def _decompress(self, data: bytes) -> bytes:
        if self._frame is None:
            self._frame = self._library.ZstdDecompressor().decompressobj()
        try:
            text: bytes = self._frame.decompress(data)
        except self._library.ZstdError as error:
            raise OSError(f"not valid zstd data ({error})") from None
        self._rest = b""
        if self._frame.eof:
            self._rest = self._frame.unused_data
            self._frame = None
        return text


@contextmanager
def open_bytes(path: str) -> Iterator[IO[bytes]]:
    """Open a file, or standard input for "-", as it lies on disk."""
    if path == STANDARD_INPUT:
        yield sys.stdin.buffer
        return
    with open(path, "rb") as raw:
        yield raw


def decompressed(path: str, raw: IO[bytes]) -> IO[bytes] | gzip.GzipFile:
    """The text in `raw`, opened by `open_bytes(path)`.

    Raises:
        EOFError: a compressed file without a byte; further faults are raised while reading.
    """
    if not path.endswith(COMPRESSED):
        return raw
    first = raw.read(1)
    if not first:
        raise EOFError("the file is empty, and so no compressed file")
    raw.seek(0)
    if path.endswith(".gz"):
        return gzip.open(raw)
    return io.BufferedReader(ZstdFile(raw), _SKIP)


def skip(text: IO[bytes] | gzip.GzipFile, size: int) -> None:
    """Move a fresh stream forward by `size` bytes of text."""
    if text.seekable():
        text.seek(size)
        return
    while size:
        got = len(text.read(min(size, _SKIP)))
        if not got:
            return
        size -= got
