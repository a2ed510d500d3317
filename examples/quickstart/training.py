"""Pretraining by the real launcher, stopped once on purpose and resumed, and taken up again after a kill."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from stamps import write_json

from megatron_slw.checkpoint.format import latest_checkpoint, step_folder
from megatron_slw.config.json_file import read_json
from megatron_slw.train.metrics import FILE_NAME

ROOT = Path(__file__).resolve().parents[2]
RANKS = 2
POLL_S = 0.2
TAIL_BYTES = 4096
SAVE_S = 120.0  # until ranks that were asked to save and leave are killed
SCRIPT = "pretrain_gpt.py"
REUSE_MEMORY = (
    # glibc gives large blocks back to the kernel at every free and gets fresh pages for them in the next step,
    # which took a sixth of the time. With these it keeps them.
    "MALLOC_ARENA_MAX=1",
    "MALLOC_MMAP_MAX_=0",
    "MALLOC_TRIM_THRESHOLD_=8589934592",
    "MALLOC_TOP_PAD_=67108864",
)
SESSION_FILE = "launcher.json"


class TrainingFailed(RuntimeError):
    """The launcher ended with an error, or without the checkpoint that was asked for."""


@dataclass(frozen=True)
class Training:
    """One run of pretrain_gpt.py under the launcher."""

    config: Path
    overrides: tuple[str, ...]
    run: Path
    """The run directory, logging.directory of the configuration."""
    total_steps: int
    """Of the plan."""
    stop_after: int | None = None
    """The step of the plan that it is trained to; None is its last."""
    begins_at: int = 0
    """The step of the checkpoint that it begins with; 0 without one."""

    @property
    def shown_command(self) -> str:
        """What a user would type."""
        name = os.path.relpath(self.config)
        job = [SCRIPT, "--ds-config", name, *self.overrides, *self._stop]
        return " ".join(["deepspeed", "--num_gpus", str(RANKS), *job])

    @property
    def command(self) -> list[str]:
        """What is started: on CPUs whatever the machine has, one thread a rank, on a port that is free."""
        deepspeed = Path(sys.executable).with_name("deepspeed")
        settings = ["OMP_NUM_THREADS=1", "CUDA_VISIBLE_DEVICES=", "DS_ACCELERATOR=cpu", *REUSE_MEMORY]
        launcher = [str(deepspeed), "--num_gpus", str(RANKS), "--master_port", str(_free_port())]
        quiet = ["--quiet", "--log_level", "error"]
        job = [str(ROOT / SCRIPT), "--ds-config", str(self.config), *self.overrides, *self._stop]
        return ["env", *settings, sys.executable, *launcher, *quiet, *job]

    @property
    def _stop(self) -> list[str]:
        return [] if self.stop_after is None else ["--stop-after", str(self.stop_after)]

    @property
    def last_step(self) -> int:
        """The step that it is trained to."""
        return self.total_steps if self.stop_after is None else self.stop_after

    @property
    def final_checkpoint(self) -> Path:
        """Where the trained model lies in the end."""
        return step_folder(self.run / "checkpoints", self.last_step)

    @property
    def saved_step(self) -> int:
        """Steps done in the newest complete checkpoint; 0 without one."""
        newest = latest_checkpoint(self.run / "checkpoints")
        return int(newest.name.removeprefix("step_")) if newest else 0


def train(training: Training, say: Callable[[str], None], pause_at: int | None = None) -> None:
    """Train what is left; on the way, stop and resume at step `pause_at` if that was not reached yet.

    Raises:
        TrainingFailed: the run ended early by itself; what it printed says why.
    """
    stop_leftovers(training.run)
    if training.saved_step > training.begins_at:
        say(f"an earlier run got to step {training.saved_step}; it goes on from there")
    if pause_at is not None and training.saved_step < pause_at:
        launch(training, say, stop_at=pause_at)
        if pause_at <= training.saved_step < training.last_step:
            say(f"stopped on purpose at step {training.saved_step}: SIGTERM, saved, left. Now resumed:")
    if training.saved_step < training.last_step:
        launch(training, say, stop_at=None)


def launch(training: Training, say: Callable[[str], None], stop_at: int | None) -> None:
    """Run the launcher to its end, asking the ranks to save and leave once `stop_at` steps are done.

    Raises:
        TrainingFailed: it ended before the checkpoint that was wanted was complete.
    """
    process = subprocess.Popen(training.command, stdin=subprocess.DEVNULL, start_new_session=True)
    write_json(training.run / SESSION_FILE, {"session": process.pid})
    stopping = False
    try:
        while process.poll() is None:
            if stop_at is not None and not stopping and last_step(training.run) >= stop_at:
                stopping = True
                ask_to_stop(ranks(process.pid))
            time.sleep(POLL_S)
    except BaseException:  # Ctrl-C, SIGTERM: nothing is left running
        end_session(process.pid)
        raise
    wanted = training.last_step if stop_at is None else stop_at
    if training.saved_step < wanted:
        raise TrainingFailed(
            f"pretraining ended with status {process.returncode} at step {last_step(training.run)}, before step "
            f"{wanted} was saved. What it printed says why; the same command goes on."
        )
    if process.returncode:  # torch's threads can end a process badly that had nothing left to do
        say(f"the launcher ended with status {process.returncode} after step {training.saved_step} was saved")


def last_step(run: Path) -> int:
    """The newest step in the run's metrics; 0 before the first. Reads the end of the file alone."""
    path = run / FILE_NAME
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        lines = file.read().split(b"\n")
    for line in reversed(lines[:-1]):  # what follows the last newline is still being written
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError):  # the first line of the tail may lack its beginning
            continue
    return 0


def stop_leftovers(run: Path) -> None:
    """End ranks that outlived an earlier quickstart: two jobs must not write one directory."""
    path = run / SESSION_FILE
    if path.is_file():
        end_session(int(read_json(path)["session"]))


def end_session(session: int) -> None:
    """Ask the ranks of a session to save and leave; kill what is still there after SAVE_S."""
    ask_to_stop(ranks(session))
    _, alive = psutil.wait_procs(members(session), timeout=SAVE_S)
    for process in alive:
        process.kill()
    psutil.wait_procs(alive)


def ask_to_stop(processes: Sequence[psutil.Process]) -> None:
    """SIGTERM to each; the ranks agree, save the step they are at, and leave with status 0."""
    for process in processes:
        try:
            process.send_signal(signal.SIGTERM)
        except psutil.NoSuchProcess:
            pass


def ranks(session: int) -> list[psutil.Process]:
    """The training processes of a launcher's session."""
    return [
        process
        for process in members(session)
        if any(argument.startswith("--local_rank=") for argument in _arguments(process))
    ]


def members(session: int) -> list[psutil.Process]:
    """The launcher's processes and the ranks. No other session gets this number while one is left."""
    found = []
    for process in psutil.process_iter():
        try:
            is_member = os.getsid(process.pid) == session
            if is_member and any(argument.endswith(SCRIPT) for argument in _arguments(process)):
                found.append(process)
        except ProcessLookupError:
            pass
    return found


def _arguments(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:  # it ended, or is somebody else's
        return []


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
