"""Probe after probe until the search has chosen; killed at any moment, the same call goes on where it was."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from megatron_slw.slw.tuning import Choice, Probe, next_move
from megatron_slw.train.child_process import locked
from megatron_slw.train.stop_flag import StopFlag
from megatron_slw.train.tune_display import TuneDisplay
from megatron_slw.train.tune_job import TuneJob
from megatron_slw.train.tune_probe import probe_folder, run_probe
from megatron_slw.train.tune_state import LOCK_NAME, Result, load_results, save_results, stability, write_json

CHOSEN_NAME = "ds_slw.json"


def tune(
    job: TuneJob, directory: Path, command: Sequence[str], display: TuneDisplay
) -> tuple[list[Result], Choice]:
    """Make the probes that the search asks for; writes DIRECTORY/tuning.json after each, ds_slw.json at the end.

    Args:
        job: the tuning.
        directory: its own.
        command: the launcher and the trainer, without flags.
        display: is shown every probe.

    Raises:
        ConfigError: the directory belongs to another tuning, or the trainer refuses the configuration.
        Interrupted: a signal came; the probe has saved.
        ProbeError: a probe failed.
    """
    with locked(directory, LOCK_NAME, "tuner"), StopFlag() as stop:
        results = load_results(directory, job)
        save_results(directory, job, results)
        for result in results:
            _drop_checkpoints(directory, result)
            display.end(result)
        while isinstance(move := next_move(job.space, stability(results)), Probe):
            display.begin(move, results)
            result = run_probe(job, move, directory, command, display.watch, stop)
            results = [*results, result]
            save_results(directory, job, results)
            _drop_checkpoints(directory, result)
            display.end(result)
        if move.probe is not None:
            write_json(directory / CHOSEN_NAME, job.chosen_tree(move.probe))
        return results, move


def _drop_checkpoints(directory: Path, result: Result) -> None:
    shutil.rmtree(probe_folder(directory, result.probe) / "run" / "checkpoints", ignore_errors=True)
