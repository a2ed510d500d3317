"""A trainer as a process of its own, whose output goes to a log and from there to the person.

The log is locked, and every process that inherits it as standard output holds the lock. So who is started again knows
of a trainer that outlived its parent, and waits for it where two would otherwise train in one directory.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

GRACE_S = 120.0
POLL_S = 0.2
LAST_BYTES = 1 << 16


def is_running(log: Path) -> bool:
    """Whether a process still writes to the log."""
    with log.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def wait(log: Path, stream: TextIO, stopping: Callable[[], bool]) -> None:
    """Wait for a trainer of an earlier start, if one still runs, and show what it says; leave it when to stop."""
    log.parent.mkdir(parents=True, exist_ok=True)
    log.touch()
    shown = log.stat().st_size
    while is_running(log) and not stopping():
        time.sleep(POLL_S)
        shown = _show(log, shown, stream)
    _show(log, shown, stream)


def run(command: Sequence[str], log: Path, stream: TextIO, stopping: Callable[[], bool]) -> int:
    """Run a command to its end and show what it says; its exit status.

    Args:
        command: the launcher, the trainer and its flags.
        log: gets its output, after what is there; nothing else may run that writes to it.
        stream: is shown the output.
        stopping: whether the command should save and leave; it gets one SIGTERM then, and time to do so.
    """
    with log.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        shown = file.tell()
        # A group of its own: Ctrl-C reaches the parent alone, which then ends all ranks in order.
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True)
    deadline = None
    while process.poll() is None or is_running(log):  # a launcher may die of a signal long before its ranks have saved
        if stopping() and deadline is None:
            deadline = time.monotonic() + GRACE_S
            _signal(process, signal.SIGTERM)
        if deadline is not None and time.monotonic() > deadline:
            _signal(process, signal.SIGKILL)
        time.sleep(POLL_S)
        shown = _show(log, shown, stream)
    _show(log, shown, stream)
    return process.wait()


def last_line(log: Path) -> str:
    """The last line of a log that says something."""
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - LAST_BYTES))
        lines = file.read().decode("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def _show(log: Path, shown: int, stream: TextIO) -> int:
    with log.open("rb") as file:
        file.seek(shown)
        new = file.read()
    if new:
        stream.write(new.decode("utf-8", "replace"))
        stream.flush()
    return shown + len(new)


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
