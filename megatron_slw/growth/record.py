"""What a checkpoint keeps of its growth, for all the training that follows. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from megatron_slw.config.errors import ConfigError
from megatron_slw.growth.operators.multiplier import Multiplier
from megatron_slw.growth.operators.names import FAMILIES
from megatron_slw.progress import INT64_MAX, whole_number


@dataclass(frozen=True)
class GrowthRecord:
    """The last growth of a model, in force until the next; a resume takes it from the checkpoint and saves it again."""

    step: int
    """Steps trained when it grew, on the clock of the run that follows."""
    lr_shift_tokens: int = 0
    """Tokens by which the learning-rate schedule lags behind the tokens trained; below 0 it is ahead."""
    rewarmup_steps: int = 0
    """Steps from `step` on over which the rate rises from 0 to its schedule."""
    multipliers: dict[str, Multiplier] = field(default_factory=dict)
    """By the family of tensors (`mlp.dense_h_to_4h.weight`); those left out are 1."""
    history: tuple[str, ...] = ()
    """One line for each stage of growth so far, for people."""

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object that `from_json` reads back."""
        return {
            "step": self.step,
            "lr_shift_tokens": self.lr_shift_tokens,
            "rewarmup_steps": self.rewarmup_steps,
            "multipliers": {family: factors.to_json() for family, factors in self.multipliers.items()},
            "history": list(self.history),
        }

    @classmethod
    def from_json(cls, data: object) -> GrowthRecord:
        """Read what `to_json` wrote; anything else raises ConfigError naming the field."""
        names = ("step", "lr_shift_tokens", "rewarmup_steps", "multipliers", "history")
        if not isinstance(data, Mapping) or set(data) != set(names):
            raise ConfigError(f"growth must be an object with {', '.join(names)}, but is {data!r:.80}")
        table, history, shift = data["multipliers"], data["history"], data["lr_shift_tokens"]
        if not isinstance(table, Mapping) or not set(table) <= set(FAMILIES):
            raise ConfigError(f"growth.multipliers must be an object by families of tensors, but is {table!r:.80}")
        if not isinstance(history, list) or not all(isinstance(line, str) for line in history):
            raise ConfigError(f"growth.history must be a list of lines, but is {history!r:.80}")
        if type(shift) is not int or abs(shift) > INT64_MAX:
            raise ConfigError(f"growth.lr_shift_tokens must be a whole number, but is {shift!r:.80}")
        return cls(
            step=whole_number(data["step"], "growth.step"),
            lr_shift_tokens=shift,
            rewarmup_steps=whole_number(data["rewarmup_steps"], "growth.rewarmup_steps"),
            multipliers={
                family: Multiplier.from_json(factors, f"growth.multipliers.{family}")
                for family, factors in table.items()
            },
            history=tuple(history),
        )
