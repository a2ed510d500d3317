"""Instruments of training stability, from the loss and the gradient norm of each step alone.

Loss ratio: the loss over the lowest loss of the steps before; ratios above 1.2 are counted. By this the sequence-length
warmup paper tells stable runs from others (arXiv 2108.06084).

Spike score: the share of steps that are spikes. A step is one if its loss or its gradient norm lies more than 6
standard deviations above the mean of that quantity's last 128 values, those before the step. The standard deviation
divides by n - 1; fewer than 63 values before judge nothing; a spike enters the window like any other value. This is
the rule by which OLMo-core's SkipStepOptimizer leaves out updates, applied as a measure.

A value that is not finite is no measurement: it enters neither the windows nor the lowest loss, and is neither counted
nor a spike. So a NaN, or the infinite norm of a step that fp16's loss scaler skipped, leaves no trace.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from megatron_slw.config.errors import ConfigError
from megatron_slw.progress import whole_number

RATIO_LIMIT = 1.2
WINDOW = 128
LEAST_VALUES = WINDOW // 2 - 1
SIGMAS = 6.0


@dataclass(frozen=True)
class Stability:
    """What was measured so far. The loop replaces it after each step, the checkpoint stores it."""

    steps: int = 0
    lowest_loss: float | None = None
    """Above 0; None before the first finite loss."""
    loss_ratio_count: int = 0
    """Steps whose loss ratio was above RATIO_LIMIT."""
    spikes: int = 0
    losses: tuple[float, ...] = ()
    """The last WINDOW finite ones, oldest first."""
    grad_norms: tuple[float, ...] = ()
    """The last WINDOW finite ones, oldest first."""

    def loss_ratio(self, loss: float) -> float:
        """`loss` over the lowest so far; 1 where there is none yet."""
        return loss / self.lowest_loss if self.lowest_loss is not None else 1.0

    @property
    def spike_score(self) -> float:
        """Share of the steps that were spikes, 0 to 1."""
        return self.spikes / self.steps if self.steps else 0.0

    def after(self, loss: float, grad_norm: float) -> Stability:
        """The measurements with one more step.

        Args:
            loss: of the step.
            grad_norm: before clipping; NaN where the update was skipped.
        """
        lowest = self.lowest_loss
        if math.isfinite(loss) and loss > 0.0:  # a loss of 0 would make every later ratio infinite
            lowest = loss if lowest is None else min(lowest, loss)
        ratio = self.loss_ratio(loss)
        return Stability(
            steps=self.steps + 1,
            lowest_loss=lowest,
            loss_ratio_count=self.loss_ratio_count + (math.isfinite(ratio) and ratio > RATIO_LIMIT),
            spikes=self.spikes + (_stands_out(loss, self.losses) or _stands_out(grad_norm, self.grad_norms)),
            losses=_appended(self.losses, loss),
            grad_norms=_appended(self.grad_norms, grad_norm),
        )

    def to_json(self) -> dict[str, object]:
        """Return a JSON object that `from_json` reads back, bit for bit."""
        return asdict(self) | {"losses": list(self.losses), "grad_norms": list(self.grad_norms)}

    @classmethod
    def from_json(cls, data: object) -> Stability:
        """Read what `to_json` wrote; anything else raises ConfigError naming the field."""
        names = [field.name for field in fields(cls)]
        if not isinstance(data, Mapping) or set(data) != set(names):
            raise ConfigError(f"stability must be an object with the fields {', '.join(names)}, but is {data!r:.80}")
        steps, counts, spikes = (
            whole_number(data[name], f"stability.{name}") for name in ("steps", "loss_ratio_count", "spikes")
        )
        if max(counts, spikes) > steps:
            raise ConfigError(f"stability counts {counts} ratios and {spikes} spikes, but has only {steps} steps")
        lowest = data["lowest_loss"]
        return cls(
            steps=steps,
            lowest_loss=None if lowest is None else _number(lowest, "stability.lowest_loss"),
            loss_ratio_count=counts,
            spikes=spikes,
            losses=_numbers(data["losses"], "stability.losses"),
            grad_norms=_numbers(data["grad_norms"], "stability.grad_norms"),
        )


def _stands_out(value: float, before: tuple[float, ...]) -> bool:
    count = len(before)
    if count < LEAST_VALUES or not math.isfinite(value):
        return False
    mean = math.fsum(before) / count
    deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in before) / (count - 1))
    return value - mean > SIGMAS * deviation


def _appended(window: tuple[float, ...], value: float) -> tuple[float, ...]:
    return (*window[1 - WINDOW :], value) if math.isfinite(value) else window


def _numbers(values: object, field: str) -> tuple[float, ...]:
    if not isinstance(values, list) or len(values) > WINDOW:
        raise ConfigError(f"{field} must be a list of at most {WINDOW} numbers, but is {values!r:.80}")
    return tuple(_number(value, field) for value in values)


def _number(value: object, field: str) -> float:
    if type(value) not in (int, float) or not math.isfinite(value) or value < 0:  # type: ignore[arg-type, operator]
        raise ConfigError(f"{field} must hold finite numbers of at least 0, but has {value!r:.80}")
    return float(value)  # type: ignore[arg-type]
