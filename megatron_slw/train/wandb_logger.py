"""A run in Weights & Biases; a resume goes on with the same one. The package is imported only where it is asked for."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from megatron_slw.config.errors import ConfigError
from megatron_slw.config.schema import WandbConfig
from megatron_slw.progress import Progress
from megatron_slw.train.tensorboard_events import scalars_of

ID_FILE = "wandb_run_id"
"""In the run directory: what W&B knows the run by."""


def check_installed() -> None:
    """ConfigError where the package is missing; nothing is imported."""
    spec = find_spec("wandb")
    if spec is None or spec.origin is None:  # a folder wandb/ of runs is no package
        raise ConfigError("logging.wandb needs the package wandb: pip install wandb, or set it to null.")


class WandbLogger:
    """Sends records to W&B, or keeps them in <run directory>/wandb for `wandb sync`.

    Steps are a value of their own (`step`) and not W&B's: that one only counts up, and would drop what a run that was
    killed does again from its checkpoint.
    """

    def __init__(self, settings: WandbConfig, directory: Path, start: Progress, config: Mapping[str, Any]) -> None:
        """Begin or go on.

        Args:
            settings: of the configuration.
            directory: the run directory.
            start: what the checkpoint had trained; Progress() begins a new run in W&B.
            config: shown with the run.

        Raises:
            ConfigError: the package is missing, or W&B does not take the run.
        """
        check_installed()
        import wandb

        identity = run_id(directory, start)
        try:
            self._run = wandb.init(
                project=settings.project, entity=settings.entity, name=settings.name or directory.resolve().name,
                group=settings.group, tags=settings.tags, mode=settings.mode, dir=directory, id=identity,
                resume="allow", config=dict(config), settings=wandb.Settings(console="off"),
            )  # fmt: skip
            self._run.define_metric("*", step_metric="step")
        except Exception as error:
            reason = " ".join(str(error).split())[:200].rstrip(".")
            raise ConfigError(
                f"logging.wandb cannot begin: {reason}. Run `wandb login`, or set logging.wandb.mode to offline."
            ) from None

    def log(self, record: Mapping[str, Any]) -> None:
        """Take in one line of metrics.jsonl: its finite numbers, under TensorBoard's names."""
        values = {tag: float(value) for tag, value in scalars_of(record).items()}
        self._run.log({"step": record["step"], "tokens": record["tokens"], **values})

    def close(self) -> None:
        """Wait until everything is sent or written."""
        self._run.finish()


def run_id(directory: Path, start: Progress) -> str:
    """The run's identity in W&B: that of the run directory for a resume, else a new one, which is kept there.

    Raises:
        ConfigError: the file holds something else.
    """
    path = directory / ID_FILE
    if start.step > 0 and path.is_file():
        with path.open("rb") as file:
            text = file.read(100).decode("ascii", "replace").strip()
        if not re.fullmatch("[a-z0-9]{8,64}", text):
            raise ConfigError(f"{path} does not hold the identity of a W&B run. Delete it to begin a new one there.")
        return text
    identity = secrets.token_hex(8)
    directory.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(identity + "\n", encoding="ascii")
    temporary.replace(path)
    return identity
