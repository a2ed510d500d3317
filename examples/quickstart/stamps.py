"""Which steps are done: one runs again when its inputs changed or an output is not what it wrote."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megatron_slw.data.sidecar import file_sha256

Facts = dict[str, Any]
"""What a step found out, in plain JSON types; later steps and the closing table read it."""


@dataclass(frozen=True)
class Stamp:
    """A step that was done."""

    inputs: dict[str, str]
    """Name to value or SHA-256 of everything the outputs depend on."""
    outputs: dict[str, str]
    """Path to SHA-256."""
    facts: Facts
    seconds: float


class Stamps:
    """One small JSON file a step in `folder`, written after the step's outputs are complete."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def once(
        self,
        step: str,
        inputs: Mapping[str, str],
        outputs: Sequence[Path],
        make: Callable[[], Facts],
    ) -> tuple[Stamp, bool]:
        """Do the step unless it is done; return its stamp, and whether it was done before.

        Args:
            inputs: everything that `make` depends on; see `Stamp.inputs`.
            outputs: the files that `make` writes.
            make: does the work and returns its facts.
        """
        found = self.read(step)
        if found is not None and found.inputs == inputs and _intact(found.outputs, outputs):
            return found, True
        self.path(step).unlink(missing_ok=True)
        start = time.monotonic()
        facts = make()
        written = {str(path): file_sha256(path) for path in outputs}
        stamp = Stamp(dict(inputs), written, facts, round(time.monotonic() - start, 3))
        self.write(step, stamp)
        return stamp, False

    def path(self, step: str) -> Path:
        """The stamp's file."""
        return self.folder / f"{step.replace(' ', '_')}.json"

    def read(self, step: str) -> Stamp | None:
        """The stamp of a step; None where there is none, or none that can be read."""
        try:
            return Stamp(**json.loads(self.path(step).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, step: str, stamp: Stamp) -> None:
        """Write the stamp of a step; a kill leaves either the old file or the new one."""
        write_json(self.path(step), asdict(stamp))


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file by renaming a complete one into its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def set_aside(folder: Path) -> Path:
    """Rename a folder to the first name of `folder-before-N` that is free; return the new one."""
    aside = next(path for n in range(1, 10**6) if not (path := folder.with_name(f"{folder.name}-before-{n}")).exists())
    folder.rename(aside)
    return aside


def _intact(recorded: Mapping[str, str], outputs: Sequence[Path]) -> bool:
    return set(recorded) == {str(path) for path in outputs} and all(
        Path(path).is_file() and file_sha256(Path(path)) == sha256 for path, sha256 in recorded.items()
    )
