"""A trainer as a process of its own, whose output goes to a log, watched by the tool that started it.

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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, TextIO

from megatron_slw.config.errors import ConfigError

STOPPED = "stopped; the same command goes on where it was."
GRACE_S = 120.0
POLL_S = 0.2
LOG_END = 1 << 16


class Interrupted(Exception):
    """The tool was asked to stop; the trainer has saved and left."""


class Echo:
    """Shows what a log gets from now on, each time it is called."""

    def __init__(self, log: Path, stream: TextIO) -> None:
        self._log, self._stream = log, stream
        self._shown = log.stat().st_size if log.exists() else 0

    def __call__(self) -> None:
        """Show what is new."""
        with self._log.open("rb") as file:
            file.seek(self._shown)
            new = file.read()
        if new:
            self._shown += len(new)
            self._stream.write(new.decode("utf-8", "replace"))
            self._stream.flush()


def try_lock(file: IO[Any]) -> bool:
    """Lock an open file for its processes; False if others hold it.

    Some clusters' file systems know no locks. There nothing is held, and the user must not start two.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


@contextlib.contextmanager
def locked(directory: Path, name: str, user: str) -> Iterator[None]:
    """Hold a directory, which is made, by its file `name` against a second `user`; ConfigError where there is one."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / name).open("w") as file:
        if not try_lock(file):
            raise ConfigError(f"{directory} is in use by another {user}: wait for it, or take another.")
        yield


def is_running(log: Path) -> bool:
    """Whether a process still writes to the log."""
    with log.open("ab") as file:
        return not try_lock(file)


def wait(log: Path, watch: Callable[[], None], stopping: Callable[[], bool]) -> None:
    """Wait for a trainer of an earlier start, if one still runs, and watch it; leave it when to stop."""
    log.parent.mkdir(parents=True, exist_ok=True)
    log.touch()
    while is_running(log) and not stopping():
        time.sleep(POLL_S)
        watch()


def run(command: Sequence[str], log: Path, watch: Callable[[], None], stopping: Callable[[], bool]) -> int:
    """Run a command to its end; its exit status.

    Args:
        command: the launcher, the trainer and its flags.
        log: gets its output, after what is there; nothing else may run that writes to it.
        watch: called now and then while it runs, less often if it takes long, and once after.
        stopping: asked after each `watch` whether the command should save and leave; it gets one SIGTERM then, and
            time to do so.
    """
    with log.open("ab") as file:
        try_lock(file)  # nobody holds it
        # A group of its own: Ctrl-C reaches the parent alone, which then ends all ranks in order.
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True)
    try:
        _follow(process, log, watch, stopping)
    finally:
        if process.poll() is None:  # a second Ctrl-C
            _signal(process, signal.SIGKILL)
            process.wait()
    watch()
    return process.wait()


def _follow(
    process: subprocess.Popen[bytes], log: Path, watch: Callable[[], None], stopping: Callable[[], bool]
) -> None:
    deadline = None
    while process.poll() is None or is_running(log):  # a launcher may die of a signal long before its ranks have saved
        began = time.monotonic()
        watch()
        if deadline is None and stopping():
            deadline = time.monotonic() + GRACE_S
            _signal(process, signal.SIGTERM)
        if deadline is not None and time.monotonic() > deadline:
            _signal(process, signal.SIGKILL)
        pause = max(POLL_S, 20 * (time.monotonic() - began))
        if process.poll() is not None:
            time.sleep(POLL_S)
            continue
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(POLL_S if deadline is not None else pause)


def end_of(log: Path, first: int = 0) -> str:
    """The last LOG_END bytes of a log, from the byte `first` on."""
    with log.open("rb") as file:
        file.seek(max(first, file.seek(0, os.SEEK_END) - LOG_END))
        return file.read().decode("utf-8", "replace")


def last_line(log: Path, first: int = 0) -> str:
    """The last line of a log, from the byte `first` on, that says something."""
    lines = end_of(log, first).strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
