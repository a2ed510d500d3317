"""Probe after probe until the search has chosen; killed at any moment, the same call goes on where it was."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from megatron_slw.slw.tuning import Choice, Probe, next_move
from megatron_slw.train.tune_display import TuneDisplay
from megatron_slw.train.tune_job import TuneJob
from megatron_slw.train.tune_probe import probe_folder, run_probe
from megatron_slw.train.tune_state import Result, load_results, locked, save_results, stability, write_json

CHOSEN_NAME = "ds_slw.json"


class StopFlag:
    """Notes SIGTERM, SIGUSR1 and Ctrl-C; a second Ctrl-C acts as without it. A context manager."""

    def __init__(self) -> None:
        self._received = False
        self._previous: dict[int, object] = {}

    def __call__(self) -> bool:
        """Whether one came."""
        return self._received

    def __enter__(self) -> StopFlag:
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, _: FrameType | None) -> None:
        self._received = True
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)


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
    with locked(directory), StopFlag() as stop:
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
