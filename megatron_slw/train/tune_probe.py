"""One probe run: the trainer as a process of its own, watched through its metrics, stopped when it fluctuates.

The trainer's standard output is a file that is locked, and every process that inherits it holds the lock. So a tuner
that is started again knows of a probe that outlived the last one, and waits for it where it would otherwise train
twice in one directory.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_slw.config.errors import ConfigError
from megatron_slw.slw.tuning import Fluctuation, Probe, fluctuation
from megatron_slw.train.metrics import FILE_NAME, read_metrics
from megatron_slw.train.tune_job import TuneJob
from megatron_slw.train.tune_state import Result, try_lock, write_json

DIVERGED = (b"is not finite", b"loss scale already at minimum")
"""In the trainer's last words, its own and those of DeepSpeed's fp16 loss scaler; a launcher makes its exit status that
of any failure."""
STOPPED = "stopped; the same command goes on where it was."
LOG_END = 1 << 16
GRACE_S = 120.0
POLL_S = 0.2


class ProbeError(RuntimeError):
    """A probe failed for another reason than a divergence."""


class Interrupted(Exception):
    """The tuner was asked to stop; the probe has saved and left."""


@dataclass(frozen=True)
class Reading:
    """What a probe's metrics say so far."""

    steps: int
    """Trained."""
    fluctuation: Fluctuation
    complete: bool
    """Validated after its last step."""


Watch = Callable[[Reading], None]


def probe_folder(directory: Path, probe: Probe) -> Path:
    """Where a probe has its configuration, its log and its run directory."""
    return directory / "probes" / f"min{probe.min_difficulty}_over{probe.total_curriculum_step}"


def read_probe(job: TuneJob, run: Path) -> Reading:
    """What the metrics of a run directory say."""
    path = run / FILE_NAME
    steps, evaluations = read_metrics(path) if path.exists() else ([], [])
    losses = [(record["step"], record["val_loss"]) for record in evaluations]
    done = bool(losses) and losses[-1][0] >= job.steps
    return Reading(steps[-1]["step"] if steps else 0, fluctuation(losses, job.limit), done)


def run_probe(
    job: TuneJob, probe: Probe, directory: Path, command: Sequence[str], watch: Watch, stopping: Callable[[], bool]
) -> Result:
    """Run a probe to its end or its first fluctuation; what an earlier start did of it is not done again.

    Args:
        job: the tuning.
        probe: the schedule.
        directory: of the tuning.
        command: the launcher and the trainer, without flags.
        watch: is shown what the metrics say now and then.
        stopping: whether the tuner was asked to stop.

    Raises:
        Interrupted: it was.
        ConfigError: the trainer refused the configuration.
        ProbeError: it failed.
    """
    folder = probe_folder(directory, probe)
    run, file, path = folder / "run", folder / "ds_config.json", folder / "log.txt"
    folder.mkdir(parents=True, exist_ok=True)
    while not _gone(path):  # the probe of a tuner that was killed still runs
        watch(read_probe(job, run))
        if stopping():
            raise Interrupted(STOPPED)
        time.sleep(POLL_S)
    result = _result(job, probe, run, path)
    if result is not None:
        return result
    write_json(file, job.probe_tree(probe, run))
    began = path.stat().st_size
    flags = ["--ds-config", str(file), "--stop-after", str(job.steps)]
    status = _watched(job, [*command, *flags], path, run, watch, stopping)
    result = _result(job, probe, run, path)
    if result is not None:
        return result
    if stopping():
        raise Interrupted(STOPPED)
    raise _failure(status, path, began)


def _result(job: TuneJob, probe: Probe, run: Path, log: Path) -> Result | None:
    """The probe's result, if it has come to one."""
    reading = read_probe(job, run)
    found = reading.fluctuation
    if found.significant:
        ratio = found.worst_ratio if math.isfinite(found.worst_ratio) else None
        return Result(*probe, False, ratio, found.worst_step, reading.steps)
    if reading.complete:
        return Result(*probe, True, found.worst_ratio, found.worst_step, reading.steps)
    last_words = _end_of(log)
    if any(words in last_words for words in DIVERGED):
        return Result(*probe, False, None, reading.steps + 1, reading.steps)
    return None


def _watched(
    job: TuneJob, command: Sequence[str], log: Path, run: Path, watch: Watch, stopping: Callable[[], bool]
) -> int:
    """Run the command until it ends, fluctuates or is to stop; its exit status."""
    with _process(command, log) as process:
        while process.poll() is None:
            began = time.monotonic()
            reading = read_probe(job, run)
            watch(reading)
            if reading.fluctuation.significant or stopping():
                _signal(process, signal.SIGTERM)  # all ranks save and leave
                break
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(POLL_S, 20 * (time.monotonic() - began)))  # a long file is read less often
        # A launcher may die of the signal long before its ranks have saved.
        deadline = time.monotonic() + GRACE_S
        while (process.poll() is None or not _gone(log)) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        _signal(process, signal.SIGKILL)
        return process.wait()


@contextlib.contextmanager
def _process(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The process, in a group of its own: Ctrl-C reaches the tuner alone, which then ends all ranks in order."""
    with log.open("ab") as file:
        try_lock(file)  # nobody holds it: run_probe has looked
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            _signal(process, signal.SIGKILL)
            process.wait()


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _gone(log: Path) -> bool:
    """Whether no process of a probe is left: each holds the lock of its standard output."""
    with log.open("ab") as file:
        return try_lock(file)


def _end_of(path: Path, first: int = 0) -> bytes:
    """The last bytes of a log, from the byte `first` on."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(first, size - LOG_END))
        return file.read()


def _failure(status: int, log: Path, began: int) -> Exception:
    lines = _end_of(log, began).decode("utf-8", "replace").strip().splitlines()
    last = lines[-1] if lines else "it said nothing"
    if status == 2:
        return ConfigError(last)
    return ProbeError(f"a probe ended with status {status} before its last step: {last} (all of it: {log})")
