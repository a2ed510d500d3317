"""SIGTERM, SIGUSR1 and Ctrl-C, or the end of the launcher: finish the step, save, leave."""

from __future__ import annotations

import signal
from types import FrameType

import torch
import torch.distributed as dist

from megatron_slw.parallel.groups import Groups
from megatron_slw.train.launcher_watch import LauncherWatch

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
LAUNCHER_GONE = 1 << 16
"""Stands in the place of a signal's number."""


class StopRequest:
    """Notes a signal to this process, and looks whether its launcher still is; `agreed` makes one rank's request
    everybody's. A context manager.

    A second Ctrl-C acts as it does without this object.
    """

    def __init__(self, groups: Groups) -> None:
        self._groups = groups
        self._received: int | None = None
        self._launcher = LauncherWatch()
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, _: FrameType | None) -> None:
        self._received = number
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def agreed(self) -> str | None:
        """What any rank was asked to stop by, the same on all ranks; collective, once a step."""
        if self._received is None and self._launcher.gone():
            self._received = LAUNCHER_GONE
        flag = torch.tensor([self._received or 0], dtype=torch.int32, device=self._groups.device)
        if self._groups.world_size > 1:
            dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        if int(flag) == LAUNCHER_GONE:
            return "the end of its launcher"
        return signal.Signals(int(flag)).name if int(flag) else None
