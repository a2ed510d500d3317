"""A disk that refuses lines: they wait, in order and whole, and the user is told once."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_slw.train import line_file
from megatron_slw.train.line_file import LineFile

WRITE = os.write


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    """Call it with the bytes that the disk still takes, None for any number."""
    room: list[int | None] = [None]

    def write(file: int, data: bytes) -> int:
        if room[0] is None:
            return WRITE(file, data)
        if room[0] == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = WRITE(file, bytes(data[: room[0]]))
        room[0] -= taken
        return taken

    def leave(count: int | None) -> None:
        room[0] = count

    monkeypatch.setattr(line_file.os, "write", write)
    return leave


@pytest.mark.parametrize("room", [0, 1, 4, 5, 6, 10])
def test_lines_that_were_refused_come_later(tmp_path: Path, disk: Callable[[int | None], None], room: int) -> None:
    """Wherever the disk was full, inside of a line too: each line once, in order."""
    said: list[str] = []
    file = LineFile(tmp_path / "x", said.append)
    file.append("one\n")
    disk(room)
    for line in ("two\n", "three\n", "four\n"):
        file.append(line)
    assert (tmp_path / "x").read_bytes() == b"one\ntwo\nthree\nfour\n"[: 4 + room]
    assert [text.partition(";")[0] for text in said] == [
        f"warning: {tmp_path / 'x'} could not be written (No space left on device)"
    ]
    disk(None)
    file.append("five\n")
    assert (tmp_path / "x").read_bytes() == b"one\ntwo\nthree\nfour\nfive\n"
    assert said[1:] == [f"{tmp_path / 'x'} is written again, no line is missing."]
    file.close()
    assert len(said) == 2


def test_the_end_writes_what_waits(tmp_path: Path, disk: Callable[[int | None], None]) -> None:
    file = LineFile(tmp_path / "x", lambda _: None)
    disk(0)
    file.append("one\n")
    disk(None)
    file.close()
    assert (tmp_path / "x").read_bytes() == b"one\n"


def test_what_is_lost_is_said(tmp_path: Path, disk: Callable[[int | None], None]) -> None:
    said: list[str] = []
    file = LineFile(tmp_path / "x", said.append)
    disk(2)
    file.append("one\n")
    file.append("two\n")
    file.close()
    assert said[-1] == f"warning: the last 2 lines of {tmp_path / 'x'} are lost: No space left on device."


def test_what_waits_is_bounded(
    tmp_path: Path, disk: Callable[[int | None], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line_file, "MAX_WAITING", 7)
    file = LineFile(tmp_path / "x", lambda _: None)
    disk(0)
    file.append("one\n")
    with pytest.raises(OSError, match="No space left"):
        file.append("two\n")
