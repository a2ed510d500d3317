"""Real jobs of two ranks under real launchers, for tests that signal, stop and kill them."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from megatron_slw.checkpoint.format import latest_checkpoint
from megatron_slw.checkpoint.load import Checkpoint
from tests.train.test_pretrain import BIN, DEEPSPEED, PYTHON, ROOT, TORCHRUN, environment, prepare

LAUNCHERS = {"deepspeed": DEEPSPEED, "torchrun": TORCHRUN, "python": PYTHON}
LONG = "--training.train_steps=100000"
PATIENCE_S = 240.0
__all__ = ["BIN", "LAUNCHERS", "LONG", "Run", "launched", "prepare"]


class Run:
    """A job that is running; its output lies in files, which nobody has to read for it to go on."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path) -> None:
        self.process, self.folder = process, folder

    @property
    def out(self) -> str:
        return (self.folder / "out").read_text(errors="replace")

    @property
    def err(self) -> str:
        return (self.folder / "err").read_text(errors="replace")

    def step(self) -> int:
        """The last step that was printed."""
        found = re.findall(r"^step (\d+)/", self.out, re.MULTILINE)
        return int(found[-1]) if found else 0

    def saved_step(self) -> int:
        """The step of the newest complete checkpoint, every byte of it verified; 0 where there is none."""
        path = latest_checkpoint(self.folder / "run" / "checkpoints")
        if path is None:
            return 0
        checkpoint = Checkpoint(path)
        checkpoint.verify()
        return checkpoint.progress.step

    def wait_for_step(self, step: int) -> None:
        """Until that step was printed; fails where the job ends before."""
        deadline = time.monotonic() + PATIENCE_S
        while self.step() < step:
            assert self.process.poll() is None, f"the job ended with {self.process.returncode}: {self.err}"
            assert time.monotonic() < deadline, f"step {step} did not come: {self.out} {self.err}"
            self.process_wait(0.1)

    def process_wait(self, seconds: float) -> None:
        """Give the job time; returns early when it has ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)

    def ranks(self) -> dict[int, psutil.Process]:
        """Processes of the job that train, by rank: those without a child that trains too."""
        found = {}
        for process in self.trainers():
            with contextlib.suppress(psutil.Error):
                words = " ".join(process.cmdline())
                if "launcher" in words or "torchrun" in words or "bin/deepspeed" in words:
                    continue
                if not any("pretrain_gpt.py" in " ".join(child.cmdline()) for child in process.children()):
                    found[int(process.environ().get("RANK", "0"))] = process
        return found

    def trainers(self) -> list[psutil.Process]:
        """Every process, launchers and parents too, that has this job's configuration in its command line."""
        mine = str(self.folder / "config.json")
        return [process for process in psutil.process_iter() if mine in _words(process)]

    def end(self) -> int:
        """Wait until the launcher and every rank have ended; the launcher's status."""
        status = self.process.wait(PATIENCE_S)
        _, alive = psutil.wait_procs(self.trainers(), timeout=PATIENCE_S)
        assert not alive, f"outlived the launcher: {[p.cmdline() for p in alive]}"
        return status


@contextlib.contextmanager
def launched(launcher: str, folder: Path, *flags: str) -> Iterator[Run]:
    """Start a job in a folder that `prepare` made; whatever is left of it at the end is killed."""
    command = [*LAUNCHERS[launcher], "--ds-config", str(folder / "config.json"), *flags]
    with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
        env, nothing = environment(), subprocess.DEVNULL
        process = subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=out, stderr=err, stdin=nothing, start_new_session=True
        )
    run = Run(process, folder)
    try:
        yield run
    finally:
        for left in run.trainers():
            with contextlib.suppress(psutil.Error):
                left.send_signal(signal.SIGKILL)
        process.wait()


def _words(process: psutil.Process) -> list[str]:
    try:
        return [] if process.pid == os.getpid() else process.cmdline()
    except psutil.Error:
        return []
