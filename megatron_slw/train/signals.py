"""SIGTERM, SIGUSR1 and Ctrl-C, or the end of the launcher: finish the step, save, leave."""

from __future__ import annotations

import signal

import torch
import torch.distributed as dist

from megatron_slw.parallel.groups import Groups
from megatron_slw.train.launcher_watch import LauncherWatch
from megatron_slw.train.stop_flag import StopFlag

LAUNCHER_GONE = 1 << 16
"""Stands in the place of a signal's number."""


class StopRequest:
    """Notes a signal to this process, and looks whether its launcher still is; `agreed` makes one rank's request
    everybody's. A context manager.

    A second Ctrl-C acts as it does without this object.
    """

    def __init__(self, groups: Groups) -> None:
        self._groups = groups
        self._flag = StopFlag()
        self._launcher = LauncherWatch()

    def __enter__(self) -> StopRequest:
        self._flag.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._flag.__exit__(*exception)

    def agreed(self) -> str | None:
        """What any rank was asked to stop by, the same on all ranks; collective, once a step."""
        received = self._flag.received
        if received is None and self._launcher.gone():
            received = LAUNCHER_GONE
        flag = torch.tensor([received or 0], dtype=torch.int32, device=self._groups.device)
        if self._groups.world_size > 1:
            dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        if int(flag) == LAUNCHER_GONE:
            return "the end of its launcher"
        return signal.Signals(int(flag)).name if int(flag) else None
