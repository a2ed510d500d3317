"""A file that grows line by line and whose disk may refuse: what cannot be written waits, and training goes on."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

MAX_WAITING = 1 << 26
"""Bytes, about 100,000 lines of metrics; beyond it the disk's error ends the run."""


class LineFile:
    """Appends lines; those that the disk refuses are kept in memory and written before the next one that it takes."""

    def __init__(self, path: Path, note: Callable[[str], None]) -> None:
        """Open the file, which is made if need be.

        Args:
            path: of the file.
            note: told when the disk begins to refuse, when it takes lines again, and what is lost in the end.

        Raises:
            OSError: it cannot be opened.
        """
        self._path, self._note = path, note
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        self._waiting = bytearray()
        self._refused = False

    def append(self, line: str) -> None:
        """Write a line, given with its end, and first those that wait.

        Raises:
            OSError: the disk refuses it, and MAX_WAITING bytes wait already.
        """
        self._waiting += line.encode()
        try:
            self._write()
        except OSError as error:
            if len(self._waiting) > MAX_WAITING:
                raise
            if not self._refused:
                self._refused = True
                self._note(
                    f"warning: {self._path} could not be written ({error.strerror}); training goes on, and the lines "
                    "are kept until it can."
                )
        else:
            if self._refused:
                self._refused = False
                self._note(f"{self._path} is written again, no line is missing.")

    def close(self) -> None:
        """Write what waits, or say that it is lost; appending afterwards is an error."""
        try:
            self._write()
        except OSError as error:
            lines = self._waiting.count(b"\n")
            self._note(f"warning: the last {lines} lines of {self._path} are lost: {error.strerror}.")
        os.close(self._file)

    def _write(self) -> None:
        # One call per line: a kill leaves at most the last line cut. A full disk may take a part of it; the rest waits.
        while self._waiting:
            del self._waiting[: os.write(self._file, self._waiting)]
