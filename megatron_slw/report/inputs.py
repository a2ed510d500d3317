"""The runs that a command line names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from megatron_slw.config.errors import ConfigError, show
from megatron_slw.report.reading import ReadingReport
from megatron_slw.report.series import Run, read_run
from megatron_slw.train.metrics import FILE_NAME

MAX_RUNS = 5
"""On a page: no more lines can be told apart in one chart."""


def read_runs(arguments: Sequence[str]) -> list[Run]:
    """Read every run and report how far that is; an argument is its directory, named as the run, or NAME=DIRECTORY.

    Raises:
        ConfigError: too many runs, two of one name, or one that cannot be read.
    """
    if len(arguments) > MAX_RUNS:
        raise ConfigError(f"a page shows at most {MAX_RUNS} runs, not {len(arguments)}: leave some out")
    folders: dict[str, str] = {}
    for argument in arguments:
        name, folder = named(argument)
        if name in folders:
            raise ConfigError(
                f"{folders[name]} and {folder} are both called {show(name)}: name one of them, as in other={folder}"
            )
        folders[name] = folder
    with ReadingReport(sum(_size(folder) for folder in folders.values())) as report:
        return [read_run(name, folder, report) for name, folder in folders.items()]


def named(argument: str) -> tuple[str, str]:
    """The run's name and its directory."""
    name, equals, folder = argument.partition("=")
    if equals and name and folder and not Path(argument).is_dir():
        return name, folder
    return Path(argument).resolve().name or argument, argument


def _size(folder: str) -> int:
    path = Path(folder) / FILE_NAME
    return path.stat().st_size if path.is_file() else 0
