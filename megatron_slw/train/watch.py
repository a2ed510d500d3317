"""A thread on each rank that tells the others it lives and where it stands, and ends the job when nothing moves.

Beats go through the store of the rendezvous, a key a rank, overwritten. The lowest rank that lives reads them all and
judges; the others read only the ranks below them. A rank that hangs in a collective can still judge, because the thread
is another one; a stopped process cannot, and that is how it is told apart.

Whether the main thread works or waits for others is sampled from its Python stack: a frame of torch.distributed, or a
`.wait(`, is waiting. Kernels on a GPU run behind the program's back, so there `working` says less than on a CPU.
"""

from __future__ import annotations

import contextlib
import linecache
import os
import signal
import sys
import threading
import time
from collections import deque
from types import FrameType
from typing import TextIO

import torch.distributed as dist

from megatron_slw.train.heartbeat import Beat, Seen, culprits, names, stalled, straggler, table, update

SAMPLE_S = 0.25
WINDOW_SAMPLES = 120
STRAGGLER_EVERY_S = 60.0
CONNECTION_LOST = "lost the connection"
HUNG = 1
"""Exit status of a rank that is ended here, that of every failed run."""
_WAITS_IN = ("/torch/distributed/", "/deepspeed/comm/")
_OURS = f"{os.sep}megatron_slw{os.sep}"


def lost_connection(error: RuntimeError) -> bool:
    """Whether a communication failed because another rank ended: gloo has no exception of its own."""
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower()


class Watch:
    """A context manager around a job of several ranks. `at` is called by the main thread, the rest is its own.

    Args:
        store: of the rendezvous; None watches nothing (a job of one rank).
        rank: this one.
        world_size: ranks.
        timeout_s: seconds without progress on some rank after which the job ends; 0 watches nothing.
        life_fd: a pipe to a parent that restarts ranks; told with each beat how many seconds of silence to allow.
        stream: where a report goes.
    """

    def __init__(
        self,
        store: dist.Store | None,
        rank: int,
        world_size: int,
        timeout_s: float,
        life_fd: int | None = None,
        stream: TextIO = sys.stderr,
    ) -> None:
        self._store = store.clone() if store is not None and timeout_s > 0 and world_size > 1 else None  # type: ignore[attr-defined]
        self.rank, self.world_size, self.timeout_s, self._stream = rank, world_size, timeout_s, stream
        self.interval_s = min(2.0, timeout_s / 8) if timeout_s else 2.0
        self._life_fd = life_fd
        self._where, self._moves, self._count, self._failed = "start", 0, 0, ""
        self._samples: deque[bool] = deque(maxlen=WINDOW_SAMPLES)
        self._seen: dict[int, tuple[Beat, float, float]] = {}
        self._named_at = -STRAGGLER_EVERY_S
        self._silent_named: set[int] = set()
        self._done = threading.Event()
        self._main = threading.main_thread().ident
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._answered = time.monotonic()

    @property
    def silent_s(self) -> float:
        """Without a beat for so long, a rank counts as gone: long enough for a machine that swaps."""
        return max(3 * self.interval_s, min(30.0, self.timeout_s / 2))

    @property
    def dead_s(self) -> float:
        """The same once a communication has failed. Launchers kill the rest of a job after half a minute."""
        return 4 * self.interval_s

    def __enter__(self) -> Watch:
        if self._store is not None:
            self._beat()
            self._answered = time.monotonic()
            self._thread.start()
            threading.Thread(target=self._guard, name="watch-guard", daemon=True).start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None and self._store is not None:  # the others must not take this rank for a dead one
            self._failed = f"{type(error).__name__}: {error}"
            with contextlib.suppress(RuntimeError):
                self._beat()
        self._done.set()
        if self._thread.is_alive():
            self._thread.join(timeout=2 * self.interval_s)

    def at(self, where: str) -> None:
        """The main thread moves on to `where`."""
        self._where = where
        self._moves += 1

    def explain(self) -> str | None:
        """Who is to blame for a failed communication, in one line; None where that is not this rank's to say.

        Waits until every rank has said that it failed too or has been silent long enough to be gone.
        """
        if self._store is None:
            return None
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher's, who saw the dead rank: this one ends in seconds
        self._failed = CONNECTION_LOST
        deadline = time.monotonic() + 2 * self.dead_s
        while time.monotonic() < deadline:
            try:
                self._beat()
                ranks = self._look(range(self.world_size))
            except RuntimeError:  # dist.DistError is one: the process that held the store is gone
                return self._line("rank 0, which held the rendezvous, is gone", {}) if self.rank == 1 else None
            # A rank that still runs fails at its next communication, or ends, and says so.
            if all(seen.beat.failed or seen.silent_s > self.dead_s for seen in ranks.values()):
                break
            self._done.wait(self.interval_s / 4)
        gone = [rank for rank, seen in ranks.items() if not seen.beat.failed]
        alive = [rank for rank in ranks if rank not in gone]
        if self.rank != min(alive, default=self.rank) or not gone:
            return None
        return self._line(f"{names(gone)} gave no sign of life any more (killed, or the machine is gone)", ranks)

    def _line(self, what: str, ranks: dict[int, Seen]) -> str:
        return "\n".join(
            [*table(ranks, self.silent_s), f"{self._where}: {what}. The same command goes on from the last checkpoint."]
        )

    def _run(self) -> None:
        beat_at = 0.0
        while not self._done.wait(SAMPLE_S):
            self._samples.append(self._works())
            now = time.monotonic()
            if now - beat_at < self.interval_s:
                continue
            beat_at = now
            try:
                self._beat()
                self._judge()
            except RuntimeError:  # the store is gone: the main thread's next communication fails, and says so
                if self._done.is_set():
                    return
            self._answered = time.monotonic()

    def _guard(self) -> None:
        """End the job where the store does not answer. Without torchrun it lies in rank 0, and where that is stopped, a
        call of the store never returns, whatever its time-out.
        """
        while not self._done.wait(self.interval_s):
            if self.rank == 0 or time.monotonic() - self._answered <= self.timeout_s:
                continue
            if self.rank == 1:
                beat, silent = self._own_beat(), time.monotonic() - self._answered
                lines = [f"no progress for {self.timeout_s:g} s (training.hang_timeout_s):"]
                lines += table({1: Seen(beat, 0.0, silent)}, self.silent_s)
                lines.append(
                    f"rank 0 gave no sign of life for {silent:.0f} s (stopped, killed, or its machine is gone). The "
                    "job ends; the same command goes on from the last checkpoint."
                )
                self._say(lines)
            os._exit(HUNG)

    def _judge(self) -> None:
        """End the job if a rank stands still; only the lowest rank that lives says why."""
        for rank in range(self.rank):
            if self._look([rank])[rank].silent_s <= self.silent_s:
                self._follow()
                return
        ranks = self._look(range(self.world_size))
        if stalled(ranks, self.timeout_s) and not any(seen.beat.failed for seen in ranks.values()):
            who, what = culprits(ranks, self.silent_s)
            lines = [f"no progress for {self.timeout_s:g} s (training.hang_timeout_s):", *table(ranks, self.silent_s)]
            lines.append(f"{names(who)} {what}. The job ends; the same command goes on from the last checkpoint.")
            self._say(lines)
            self._store_set("verdict", "hung")
            time.sleep(self.interval_s)  # whoever holds the store must outlive the others' look at it
            os._exit(HUNG)
        self._name_silent(ranks)
        self._name_straggler({rank: seen.beat for rank, seen in ranks.items()})

    def _follow(self) -> None:
        if self._store is not None and self._store.check(["watch/verdict"]):
            self._say([])
            os._exit(HUNG)

    def _name_silent(self, ranks: dict[int, Seen]) -> None:
        silent = {rank for rank, seen in ranks.items() if seen.silent_s > self.silent_s and not seen.beat.failed}
        new = sorted(silent - self._silent_named)
        self._silent_named = silent
        if new:
            left = f"the job ends after {self.timeout_s:g} s (training.hang_timeout_s)"
            beat = ranks[new[0]].beat
            self._say([
                f"warning: {names(new)} gave no sign of life for {self.silent_s:.0f} s; {left}; last seen in "
                f"{beat.where}, {beat.place}"
            ])  # fmt: skip

    def _name_straggler(self, beats: dict[int, Beat]) -> None:
        slow, now = straggler(beats), time.monotonic()
        if slow is None or len(self._samples) < WINDOW_SAMPLES or now - self._named_at < STRAGGLER_EVERY_S:
            return
        self._named_at = now
        beat = beats[slow]
        self._say([
            f"warning: rank {slow} holds up the others: in the last {beat.window_s:.0f} s it worked "
            f"{beat.working:.0%} of the time, while they waited for it; {beat.where}, {beat.place}"
        ])  # fmt: skip

    def _say(self, lines: list[str]) -> None:
        for line in lines:
            print(line, file=self._stream)
        self._stream.flush()
        sys.stdout.flush()

    def _own_beat(self) -> Beat:
        samples = list(self._samples)
        working = sum(samples) / len(samples) if samples else 1.0
        stack, window_s = self._stack(), len(samples) * SAMPLE_S
        share, waits = round(working, 3), _waits(stack)
        return Beat(self._count, self._where, self._moves, _place(stack), share, window_s, waits, self._failed)

    def _beat(self) -> None:
        self._count += 1
        self._store_set(f"{self.rank}", self._own_beat().to_json())
        if self._life_fd is not None:
            with contextlib.suppress(OSError):  # full or closed: the parent has other cares
                os.write(self._life_fd, f"{self.timeout_s + self.silent_s:.0f}\n".encode())

    def _store_set(self, key: str, value: str) -> None:
        if self._store is not None:
            self._store.set(f"watch/{key}", value)

    def _look(self, ranks: range | list[int]) -> dict[int, Seen]:
        """The beats of these ranks; one that has not come up yet is at its start."""
        store, now = self._store, time.monotonic()
        if store is None:
            return {}
        for rank in ranks:
            key = f"watch/{rank}"
            beat = Beat.from_json(store.get(key)) if store.check([key]) else Beat(0, "start", 0, "not yet up", 1.0, 0.0)
            self._seen[rank] = update(self._seen, rank, beat, now)
        return {rank: Seen(beat, now - came, now - moved) for rank in ranks for beat, came, moved in [self._seen[rank]]}

    def _stack(self) -> FrameType | None:
        return sys._current_frames().get(self._main or 0)

    def _works(self) -> bool:
        return not _waits(self._stack())


def _waits(frame: FrameType | None) -> bool:
    """Whether a stack ends in a wait for other ranks."""
    if frame is None:
        return False
    file, line = frame.f_code.co_filename, frame.f_lineno  # None between two lines, whatever the stubs say
    return any(part in file for part in _WAITS_IN) or ".wait(" in linecache.getline(file, line or 0)


def _place(frame: FrameType | None) -> str:
    """The innermost line of ours, and the function it ends in, like "engine.py:180 _accumulate, in all_reduce"."""
    innermost = frame
    while frame is not None and _OURS not in frame.f_code.co_filename:
        frame = frame.f_back
    frame = frame or innermost
    if frame is None or innermost is None:
        return "nowhere"
    place = f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno} {frame.f_code.co_name}"
    return place if frame is innermost else f"{place}, in {innermost.f_code.co_name}"
