"""One probe run: the trainer as a process of its own, watched through its metrics, stopped when it fluctuates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_slw.config.errors import ConfigError
from megatron_slw.slw.tuning import Fluctuation, Probe, fluctuation
from megatron_slw.train import child_process
from megatron_slw.train.child_process import Interrupted
from megatron_slw.train.metrics import FILE_NAME, read_metrics
from megatron_slw.train.tune_job import TuneJob
from megatron_slw.train.tune_state import Result, write_json

DIVERGED = ("is not finite", "loss scale already at minimum")
"""In the trainer's last words, its own and those of DeepSpeed's fp16 loss scaler; a launcher makes its exit status that
of any failure."""


class ProbeError(RuntimeError):
    """A probe failed for another reason than a divergence."""


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
    run, file, log = folder / "run", folder / "ds_config.json", folder / "log.txt"
    readings: list[Reading] = []

    def read() -> None:
        readings[:] = [read_probe(job, run)]
        watch(readings[0])

    def ends() -> bool:
        return stopping() or readings[0].fluctuation.significant

    child_process.wait(log, read, stopping)  # the probe of a tuner that was killed still runs
    if child_process.is_running(log):
        raise Interrupted(child_process.STOPPED)
    result = _result(job, probe, run, log)
    if result is not None:
        return result
    write_json(file, job.probe_tree(probe, run))
    began = log.stat().st_size
    flags = ["--ds-config", str(file), "--stop-after", str(job.steps)]
    status = child_process.run([*command, *flags], log, read, ends)
    result = _result(job, probe, run, log)
    if result is not None:
        return result
    if stopping():
        raise Interrupted(child_process.STOPPED)
    raise _failure(status, log, began)


def _result(job: TuneJob, probe: Probe, run: Path, log: Path) -> Result | None:
    """The probe's result, if it has come to one."""
    reading = read_probe(job, run)
    found = reading.fluctuation
    if found.significant:
        ratio = found.worst_ratio if math.isfinite(found.worst_ratio) else None
        return Result(*probe, False, ratio, found.worst_step, reading.steps)
    if reading.complete:
        return Result(*probe, True, found.worst_ratio, found.worst_step, reading.steps)
    last_words = child_process.end_of(log)
    if any(words in last_words for words in DIVERGED):
        return Result(*probe, False, None, reading.steps + 1, reading.steps)
    return None


def _failure(status: int, log: Path, began: int) -> Exception:
    last = child_process.last_line(log, began)
    if status == 2:
        return ConfigError(last)
    return ProbeError(f"a probe ended with status {status} before its last step: {last} (all of it: {log})")
