"""Everything of a run that a checkpoint keeps beside the tensors: one record, and state.json, which is its JSON.

What is added to the training state is a field here with a line in `to_json` and `from_json`; saving, loading, growth
and imports follow. A key more makes older programs refuse the file, so it raises `format.VERSION`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from pydantic import ValidationError

from megatron_slw.config.errors import ConfigError
from megatron_slw.config.load import to_json
from megatron_slw.config.schema import RunConfig
from megatron_slw.growth.record import GrowthRecord
from megatron_slw.progress import Progress, whole_number
from megatron_slw.slw.adaptive import AdaptivePacing
from megatron_slw.slw.plan import Plan
from megatron_slw.slw.skipped import Skipped
from megatron_slw.slw.spikes import SpikeWindow
from megatron_slw.slw.stability import Stability

SCALER_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
"""Of DeepSpeed's dynamic loss scaler. Others are never set from a file."""


@dataclass(frozen=True)
class TrainingState:
    """What is saved with the tensors and comes back at a resume."""

    progress: Progress
    """What was trained."""
    plan: Plan
    """The compiled schedule."""
    config: RunConfig
    """Resolved."""
    dataset: dict[str, Any] | None = None
    """What identifies the training data, to be compared at resume."""
    stability: Stability = field(default_factory=Stability)
    """What the instruments measured. Not reckoned again from metrics.jsonl, which lies in the run directory: it is
    absent where a run starts from another's checkpoint, and a person may have deleted it."""
    spike_window: SpikeWindow = field(default_factory=SpikeWindow)
    """What the next steps are judged by."""
    skipped: Skipped = field(default_factory=Skipped)
    """Steps of the plan that were not trained, or will not be."""
    growth: GrowthRecord | None = None
    """What the model grew by; None for one that never grew."""
    pacing: AdaptivePacing | None = None
    """What a loss_adaptive schedule has decided; None of any other."""
    optimizer_steps: int | None = None
    """Updates that the optimizer has counted; None for SGD. A save asks the engine."""
    loss_scaler: dict[str, int | float] | None = None
    """fp16's; None in other precisions. A save asks the engine."""

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object that `from_json` reads back, bit for bit."""
        return {
            "progress": self.progress.to_json(),
            "plan": self.plan.to_json(),
            "config": to_json(self.config),
            "dataset": self.dataset,
            "stability": self.stability.to_json(),
            "spike_window": self.spike_window.to_json(),
            "skipped": self.skipped.to_json(),
            "growth": None if self.growth is None else self.growth.to_json(),
            "pacing": None if self.pacing is None else self.pacing.to_json(),
            "optimizer_steps": self.optimizer_steps,
            "loss_scaler": self.loss_scaler,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TrainingState:
        """Read what `to_json` wrote.

        Raises:
            ConfigError: anything else, naming the field.
        """
        names = {entry.name for entry in fields(cls)}
        if set(data) != names:
            raise ConfigError(f"must have {sorted(names)}, but has {sorted(data)!r:.400}.")
        steps = data["optimizer_steps"]
        return cls(
            progress=Progress.from_json(data["progress"]),
            plan=Plan.from_json(data["plan"]),
            config=_config(data["config"]),
            dataset=_dataset(data["dataset"]),
            stability=Stability.from_json(data["stability"]),
            spike_window=SpikeWindow.from_json(data["spike_window"]),
            skipped=Skipped.from_json(data["skipped"]),
            growth=None if data["growth"] is None else GrowthRecord.from_json(data["growth"]),
            pacing=None if data["pacing"] is None else AdaptivePacing.from_json(data["pacing"]),
            optimizer_steps=None if steps is None else whole_number(steps, "optimizer_steps"),
            loss_scaler=_loss_scaler(data["loss_scaler"]),
        )


def _config(data: object) -> RunConfig:
    try:
        return RunConfig.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in ("config", *first["loc"]))
        raise ConfigError(f"{where}: {first['msg']}.") from None


def _dataset(data: object) -> dict[str, Any] | None:
    if data is not None and not isinstance(data, dict):
        raise ConfigError(f"dataset must be an object or null, but is {data!r:.80}.")
    return data


def _loss_scaler(data: object) -> dict[str, int | float] | None:
    if data is None:
        return None
    if not isinstance(data, dict) or not set(data) <= set(SCALER_FIELDS):
        raise ConfigError(f"loss_scaler must be an object with {', '.join(SCALER_FIELDS)}, but is {data!r:.80}.")
    for name, value in data.items():
        if type(value) not in (int, float) or not math.isfinite(value):
            raise ConfigError(f"loss_scaler.{name} must be a number, but is {value!r:.80}.")
    return data
