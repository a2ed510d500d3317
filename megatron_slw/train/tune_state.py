"""What a tuning remembers: DIRECTORY/tuning.json, one result after the other, and a lock against a second tuner."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megatron_slw.config.errors import ConfigError, show
from megatron_slw.config.json_file import read_json
from megatron_slw.progress import whole_number
from megatron_slw.slw.tuning import Probe
from megatron_slw.train.tune_job import TuneJob

FILE_NAME = "tuning.json"
LOCK_NAME = "tuning.lock"
MAX_BYTES = 16 << 20
VERSION = 1


@dataclass(frozen=True)
class Result:
    """What one probe gave."""

    min_difficulty: int
    total_curriculum_step: int
    stable: bool
    worst_ratio: float | None
    """Validation perplexity over the best before it, at its worst; None where the probe diverged."""
    worst_step: int | None
    steps: int
    """Trained; less than asked for where it was stopped or diverged."""

    @property
    def probe(self) -> Probe:
        """Which one it was."""
        return Probe(self.min_difficulty, self.total_curriculum_step)


def stability(results: list[Result]) -> dict[Probe, bool]:
    """The results as the search wants them."""
    return {result.probe: result.stable for result in results}


def load_results(directory: Path, job: TuneJob) -> list[Result]:
    """The results of an earlier start of the same tuning; none if there was none.

    Raises:
        ConfigError: the directory belongs to another configuration, or the file is damaged.
    """
    path = directory / FILE_NAME
    if not path.exists():
        others = {entry.name for entry in directory.iterdir()} - {LOCK_NAME, f"{FILE_NAME}.tmp"}
        if others:
            raise ConfigError(
                f"{directory} is not empty and holds no {FILE_NAME}: give --output a folder of the tuning's own."
            )
        return []
    try:
        state = read_json(path, MAX_BYTES)
        if state.get("version") != VERSION:
            raise ConfigError(f"has version {show(state.get('version'))}, not {VERSION}.")
        results = [_result(entry) for entry in _list(state, "probes")]
    except ConfigError as error:
        raise ConfigError(f"{path}: {error} Give another --output, or delete it to tune anew.") from None
    ours = {"configuration": job.tree, "settings": job.settings}
    changed = _difference({name: state.get(name) for name in ours}, ours)
    if changed is not None:
        name, before, now = changed
        raise ConfigError(
            f"{directory} belongs to another tuning: {name} was {show(before)} there and is {show(now)} here. Give "
            "another --output, or the same configuration and flags."
        )
    return results


def save_results(directory: Path, job: TuneJob, results: list[Result]) -> None:
    """Write DIRECTORY/tuning.json anew, whole or not at all."""
    state = {
        "version": VERSION,
        "configuration": job.tree,
        "settings": job.settings,
        "probes": [asdict(result) for result in results],
    }
    write_json(directory / FILE_NAME, state)


def write_json(path: Path, value: Any) -> None:
    """Write a file that a kill leaves as it was or makes new."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(json.dumps(value, indent=2, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _list(state: Mapping[str, Any], name: str) -> list[Any]:
    value = state.get(name)
    if not isinstance(value, list):
        raise ConfigError(f"{name} must be a list, not {show(value)}.")
    return value


def _result(entry: Any) -> Result:
    names = list(Result.__dataclass_fields__)
    if not isinstance(entry, dict) or set(entry) != set(names):
        raise ConfigError(f"a probe must have the fields {', '.join(names)}, not {show(entry)}.")
    ratio, step, stable = entry["worst_ratio"], entry["worst_step"], entry["stable"]
    number = type(ratio) in (int, float) and math.isfinite(ratio) and ratio >= 1
    if type(stable) is not bool or not (number or ratio is None and not stable):
        raise ConfigError(f"a probe cannot have stable {show(stable)} and worst_ratio {show(ratio)}.")
    for name, least in (("min_difficulty", 1), ("total_curriculum_step", 1), ("steps", 0)):
        whole_number(entry[name], name, least=least)
    if step is not None:
        whole_number(step, "worst_step")
    return Result(**entry)


def _difference(one: Any, other: Any, path: str = "") -> tuple[str, Any, Any] | None:
    """The dotted name of the first thing that differs, and both values."""
    if isinstance(one, dict) and isinstance(other, dict):
        for name in {**one, **other}:
            found = _difference(one.get(name), other.get(name), f"{path}.{name}" if path else str(name))
            if found is not None:
                return found
        return None
    return None if one == other else (path, one, other)
