"""One save that is written by a thread of each rank while training goes on.

The threads write, hash and fsync; none of these holds Python's lock. They never speak to other ranks: collectives of
two threads would meet in another order on each rank. So what needs all ranks is agreed on by the main threads between
two steps: first that every rank has written, upon which rank 0's thread makes it a checkpoint, then that this went
well.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from megatron_slw.checkpoint.rank_files import Block, RankFiles
from megatron_slw.checkpoint.save import Save


class BackgroundSave:
    """Begins to write at once. `advance` must be called by all ranks at the same points of the program.

    Args:
        save: prepared.
        blocks: of this rank; they must stay as they are until the end.
    """

    def __init__(self, save: Save, blocks: list[Block]) -> None:
        self.save, self._blocks = save, blocks
        self._abandoned = threading.Event()
        self._committing = False
        self._task = _Task(self._write)

    def advance(self, wait: bool = False) -> Path | None:
        """See how far all ranks are; collective.

        Args:
            wait: until the end.

        Returns:
            The checkpoint once it is complete; None while it is written.

        Raises:
            SaveError: on every rank, if any could not write its part; nothing of the save is left.
        """
        while not self._busy(wait):
            self.save.settle(self._task.error)
            if self._committing:
                return self.save.final
            self._committing = True
            self._task = _Task(self.save.commit)
        return None

    def abandon(self) -> None:
        """Stop writing: this rank leaves without the others. What was written is no checkpoint."""
        self._abandoned.set()

    def _busy(self, wait: bool) -> bool:
        """Whether any rank's thread still works; collective."""
        if wait:
            self._task.join()
        groups = self.save.groups
        busy = torch.tensor([self._task.is_alive()], dtype=torch.int32, device=groups.device)
        if groups.world_size > 1:
            dist.all_reduce(busy, op=dist.ReduceOp.MAX)
        return bool(int(busy))

    def _write(self) -> None:
        files = RankFiles(self.save.writing, self.save.groups.rank)
        for block in self._blocks:
            if self._abandoned.is_set():
                return
            files.add(block)
        files.finish()


class _Task(threading.Thread):
    """Runs at once and keeps what it raises."""

    def __init__(self, work: Callable[[], None]) -> None:
        super().__init__(name="checkpoint")
        self.error: BaseException | None = None
        self._work = work
        self.start()

    def run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self.error = error
