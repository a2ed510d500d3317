"""Loggers: what is told of a run besides metrics.jsonl.

A logger has two methods:

    log(record)   one line of metrics.jsonl as a dictionary; numbers that are not finite are None
    close()       nothing more comes

One that cannot be opened ends the run before its first step. One that fails later is told no more, and the run goes on:
metrics.jsonl has every step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from megatron_slw.config.errors import ConfigError
from megatron_slw.config.import_path import load_function
from megatron_slw.config.load import to_json
from megatron_slw.config.schema import LoggingConfig, RunConfig
from megatron_slw.progress import Progress
from megatron_slw.train.tensorboard_events import TensorBoardWriter
from megatron_slw.train.wandb_logger import WandbLogger, check_installed


class Logger(Protocol):
    """What takes in records."""

    def log(self, record: Mapping[str, Any]) -> None:
        """Take in one line of metrics.jsonl."""

    def close(self) -> None:
        """Write out what is buffered."""


class GuardedLogger:
    """A logger whose failure is told, when it happens and once more at the end, and does not end the run."""

    def __init__(self, setting: str, logger: Logger, note: Callable[[str], None]) -> None:
        self._setting, self._logger, self._note = setting, logger, note
        self._failure: str | None = None

    def log(self, record: Mapping[str, Any]) -> None:
        """Pass a record on, unless one before failed."""
        if self._failure is None:
            self._try(lambda: self._logger.log(dict(record)), f"at step {record['step']}")

    def close(self) -> None:
        """Close it, and say so if it failed on the way."""
        failed = self._failure
        self._try(self._logger.close, "at its end")
        if failed is not None:
            self._note(failed)

    def _try(self, act: Callable[[], object], when: str) -> None:
        try:
            act()
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            text = f"warning: {self._setting} failed {when} ({reason}) and is told no more; metrics.jsonl is complete."
            if self._failure is None:
                self._failure = text
                self._note(text)


@contextlib.contextmanager
def open_loggers(config: RunConfig, start: Progress, note: Callable[[str], None]) -> Iterator[list[GuardedLogger]]:
    """The loggers that the configuration asks for, closed in the end; for rank 0 only.

    Args:
        config: of the run.
        start: what the checkpoint had trained; Progress() for a new run.
        note: tells the user of a failure.

    Raises:
        ConfigError: one cannot be opened.
    """
    logging = config.logging
    with contextlib.ExitStack() as stack:
        loggers: list[GuardedLogger] = []

        def add(setting: str, logger: Logger) -> None:
            loggers.append(GuardedLogger(setting, logger, note))
            stack.callback(loggers[-1].close)

        if logging.tensorboard:
            add("logging.tensorboard", TensorBoardWriter(Path(logging.directory) / "tensorboard", start))
        if logging.wandb is not None:
            add("logging.wandb", WandbLogger(logging.wandb, Path(logging.directory), start, to_json(config)))
        if logging.callback is not None:
            add("logging.callback", _own_logger(logging.callback, config, start))
        yield loggers


def check_loggers(logging: LoggingConfig) -> None:
    """Find out early what cannot be opened later.

    Raises:
        ConfigError: a package is missing, or `logging.callback` names nothing.
    """
    if logging.wandb is not None:
        check_installed()
    if logging.callback is not None:
        load_function(logging.callback, "logging.callback")


def _own_logger(path: str, config: RunConfig, start: Progress) -> Logger:
    """What the user's factory makes of the configuration and the step that the run begins after."""
    factory = load_function(path, "logging.callback")
    try:
        logger: Any = factory(to_json(config), start.step)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200].rstrip(".")
        raise ConfigError(
            f"logging.callback {path} failed: {reason}. Mend it, or set logging.callback to null."
        ) from error
    if not callable(getattr(logger, "log", None)) or not callable(getattr(logger, "close", None)):
        raise ConfigError(
            f"logging.callback {path} must return an object with log(record) and close(), not {logger!r:.60}."
        )
    return logger
