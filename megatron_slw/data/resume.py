"""The state of an unfinished preprocessing run, on disk: where it is, and of which command on which files.

The state is written whole and renamed, after the tokens it speaks of were synced; so whenever the process is
killed, what the state says is on disk, and what lies behind it is cut off by the run that goes on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from megatron_slw.data.corpus import Position
from megatron_slw.data.writer import Committed, sync_folder

_LARGEST = 16 << 20
_VERSION = 1


@dataclass
class DatasetState:
    """How much one dataset holds."""

    documents: int = 0
    tokens: int = 0
    text_bytes: int = 0
    empty: int = 0

    @property
    def committed(self) -> Committed:
        """What its writer had made durable."""
        return Committed(self.documents, self.tokens)


@dataclass
class RunState:
    """How far a run is."""

    datasets: dict[str, DatasetState]
    """By JSON key."""
    position: Position = Position()
    """Where reading goes on."""
    read: int = 0
    """Bytes of the files read so far."""
    skipped: dict[str, int] = field(default_factory=dict)
    replaced: int = 0


def state_path(prefix: str) -> Path:
    """Where the state of the run that writes the dataset at `prefix` lies."""
    return Path(prefix + ".resume.json")


def save_state(path: Path, run: Mapping[str, str], state: RunState) -> None:
    """Write the state of the run that `run` identifies; when this returns, it survives a crash."""
    temporary = path.with_name(path.name + ".partial")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump({"version": _VERSION, "run": dict(run), "state": asdict(state)}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def load_state(path: Path, run: Mapping[str, str]) -> tuple[RunState | None, str]:
    """Read a state back.

    Args:
        path: from `state_path`.
        run: what identifies this run, by what the user would call it.

    Returns:
        The state; or None and the reason, which is empty where there is no state at all.
    """
    try:
        with path.open("rb") as file:
            data = json.loads(file.read(_LARGEST))
        if data["version"] != _VERSION:
            return None, "another version wrote what is there"
        found, state = data["run"], data["state"]
        if changed := sorted(name for name in {*found, *run} if found.get(name) != run.get(name)):
            return None, f"{' and '.join(changed)} changed since"
        datasets = {key: DatasetState(**counts) for key, counts in state.pop("datasets").items()}
        return RunState(datasets, Position(**state.pop("position")), **state), ""
    except FileNotFoundError:
        return None, ""
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None, f"{path} cannot be read"
