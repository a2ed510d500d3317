"""Restarts a rank that failed: `pretrain_gpt.py --max-restarts N`, on every rank of a job alike.

Each process that the launcher started becomes the parent of the rank itself. When one rank dies, the others fail at
their next communication or are ended by the watch (`watch.py`), so the parents of all ranks restart theirs, and the job
goes on from its last complete checkpoint. A rank that is stopped, or hangs without letting its watch run, is known by
its silence on a pipe and killed. No torch here: a parent costs ten megabytes.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType

from megatron_slw.config.errors import ConfigError
from megatron_slw.parallel.launch import check_restartable, restart_environment
from megatron_slw.train.stop_flag import SIGNALS

LIFE_FLAG = "--life-fd"
POLL_S = 0.5
NOT_RESTARTED = (0, 2)
"""Trained or stopped in order; or wrong input, which another start would meet again."""


class _Rank:
    """The child process, and what it last said of itself."""

    def __init__(self, command: Sequence[str], attempt: int) -> None:
        self._life, write = os.pipe()
        os.set_blocking(self._life, False)
        os.set_blocking(write, False)
        try:
            # A session of its own: Ctrl-C reaches the parent alone, which passes it on once.
            self.process = subprocess.Popen(
                [*command, LIFE_FLAG, str(write)],
                env=restart_environment(attempt),
                pass_fds=[write],
                start_new_session=True,
            )
        finally:
            os.close(write)
        self._allowed_s: float | None = None
        self._heard = time.monotonic()

    def wait(self) -> int:
        """Its exit status, as a shell gives it; kills it when it was silent for longer than it allowed."""
        while (status := self.process.poll()) is None:
            ready, _, _ = select.select([self._life], [], [], POLL_S)
            said = b""
            if ready:
                with contextlib.suppress(BlockingIOError):
                    said = os.read(self._life, 1 << 16)
            if said:
                self._heard = time.monotonic()
                self._allowed_s = float(said.split()[-1])
            elif ready:
                time.sleep(POLL_S)  # closed: it is about to end
            if self._allowed_s is not None and time.monotonic() - self._heard > self._allowed_s:
                _say(f"process {self.process.pid} gave no sign of life for {self._allowed_s:.0f} s and is killed")
                self.process.kill()
                status = self.process.wait()
                break
        os.close(self._life)
        return status if status >= 0 else 128 - status


def main(command: Sequence[str], max_restarts: int) -> int:
    """`supervise`, wrong input as one sentence."""
    try:
        return supervise(command, max_restarts)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2


def supervise(command: Sequence[str], max_restarts: int) -> int:
    """Run a rank, again after each failure, `max_restarts` times at most; its last exit status.

    Args:
        command: the rank's program and arguments; gets LIFE_FLAG and a file descriptor at its end.
        max_restarts: of the whole run.

    Raises:
        ConfigError: from `check_restartable`.
    """
    check_restartable()
    stopping: list[int] = []
    current: list[_Rank] = []

    def pass_on(number: int, _: FrameType | None) -> None:
        stopping.append(number)
        for rank in current:
            rank.process.send_signal(number)

    for number in SIGNALS:
        signal.signal(number, pass_on)
    for attempt in range(max_restarts + 1):
        current[:] = [_Rank(command, attempt)]
        if stopping:  # it came between two attempts
            current[0].process.send_signal(stopping[-1])
        status = current[0].wait()
        if status in NOT_RESTARTED or stopping or attempt == max_restarts:
            break
        _say(f"ended with status {status}; restart {attempt + 1} of {max_restarts} from the last checkpoint")
    return status


def _say(text: str) -> None:
    print(f"pretrain_gpt.py: {text}", file=sys.stderr, flush=True)
