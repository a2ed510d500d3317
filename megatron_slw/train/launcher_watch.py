"""Notices that the launcher which started this rank is gone, so that no rank trains on unattended.

`deepspeed` and torchrun die of SIGUSR1, `deepspeed` on one machine also of SIGTERM, and anything of SIGKILL, without a
word to their ranks. What a rank can see is that a process above it, which was a launcher, no longer is.
"""

from __future__ import annotations

from pathlib import PurePath

import psutil

LAUNCHERS = {"deepspeed", "torchrun", "mpirun", "mpiexec", "mpiexec.hydra", "hydra_pmi_proxy", "orted", "prterun"}
LAUNCHING_MODULES = {
    "deepspeed.launcher.launch",
    "deepspeed.launcher.runner",
    "torch.distributed.run",
    "torch.distributed.launch",
}
SUPERVISING_SCRIPT = "pretrain_gpt.py"


def is_launcher(words: list[str]) -> bool:
    """Whether a command line is that of a launcher, or of `pretrain_gpt.py`, which restarts its ranks."""
    names = [PurePath(word).name for word in words[:4]]
    script = names[1] if names and names[0].startswith("python") and len(names) > 1 else (names or [""])[0]
    return script in LAUNCHERS or script == SUPERVISING_SCRIPT or any(word in LAUNCHING_MODULES for word in words[:5])


class LauncherWatch:
    """The launchers above this process at the time it is made: the chain of parents up to the first other program.

    A shell above a launcher is not watched: a run goes on when the person who started it in the background logs out.
    """

    def __init__(self) -> None:
        self._chain: list[psutil.Process] = []
        try:
            for parent in psutil.Process().parents():
                if not is_launcher(parent.cmdline()):
                    break
                self._chain.append(parent)
        except psutil.Error:  # it ended while it was looked at, or belongs to another user: nothing to watch above it
            return

    def gone(self) -> bool:
        """Whether one of them has ended; a zombie that nobody has waited for has."""
        return not all(_lives(process) for process in self._chain)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
