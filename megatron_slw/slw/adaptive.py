"""loss_adaptive pacing: lengthen when the smoothed training loss at a length has stopped improving.

The loss is the mean over the global batch, the same number on every rank, so every rank decides alike. What was decided
so far and the averages that the next decision rests on are one frozen value, which the checkpoint stores: a resumed run
takes the decisions that an uninterrupted one would.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from megatron_slw.config.errors import ConfigError
from megatron_slw.config.schema import CurriculumConfig
from megatron_slw.progress import whole_number
from megatron_slw.slw.schedule import Decision


@dataclass(frozen=True)
class AdaptivePacing:
    """The decisions of a loss_adaptive schedule, and the loss at the present length."""

    decisions: tuple[Decision, ...] = ()
    average: float = 0.0
    """Exponential moving average of the losses at this length, from 0 on; divided by 1 - smoothing^seen it is one."""
    seen: int = 0
    """Losses at this length."""
    lowest: float | None = None
    """Of the smoothed loss at this length."""
    waited: int = 0
    """Steps since it was that low."""

    def after(self, step: int, loss: float, curriculum: CurriculumConfig) -> AdaptivePacing:
        """The pacing with one more step.

        The first 1 / (1 - smoothing) losses of a length only fill the average. A loss that is not finite is left out.

        Args:
            step: 0-based index of the step that had this loss; a decision counts from the next one on.
            loss: mean over the global batch, in nats.
            curriculum: resolved, of type loss_adaptive.
        """
        past, least = curriculum.smoothing, curriculum.min_improvement
        if curriculum.patience is None or curriculum.difficulty_step is None or past is None or least is None:
            raise ValueError(f"this is no loss_adaptive curriculum: {curriculum}")
        length, high = self.length(curriculum), curriculum.max_difficulty
        if length >= high or not math.isfinite(loss):
            return self
        average, seen = past * self.average + (1.0 - past) * loss, self.seen + 1
        smoothed = average / (1.0 - past**seen)
        filled = replace(self, average=average, seen=seen)
        if seen * (1.0 - past) < 1.0:
            return filled
        if self.lowest is None or smoothed < self.lowest * (1.0 - least):
            return replace(filled, lowest=smoothed, waited=0)
        if self.waited + 1 < curriculum.patience:
            return replace(filled, waited=self.waited + 1)
        longer = min(high, (length // curriculum.difficulty_step + 1) * curriculum.difficulty_step)
        return AdaptivePacing((*self.decisions, Decision(step + 1, longer)))

    def length(self, curriculum: CurriculumConfig) -> int:
        """The length decided on last."""
        if self.decisions:
            return self.decisions[-1].seq_len
        quantum = curriculum.difficulty_step or 1
        return min(-(-curriculum.min_difficulty // quantum) * quantum, curriculum.max_difficulty)

    def to_json(self) -> dict[str, object]:
        """Return a JSON object that `from_json` reads back, bit for bit."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return values | {"decisions": [list(decision) for decision in self.decisions]}

    @classmethod
    def from_json(cls, data: object) -> AdaptivePacing:
        """Read what `to_json` wrote; anything else raises ConfigError naming the field."""
        names = [field.name for field in fields(cls)]
        if not isinstance(data, Mapping) or set(data) != set(names):
            raise ConfigError(f"pacing must be an object with the fields {', '.join(names)}, but is {data!r:.80}")
        if not isinstance(data["decisions"], list):
            raise ConfigError(f"pacing.decisions must be a list, but is {data['decisions']!r:.80}")
        decisions: list[Decision] = []
        for index, entry in enumerate(data["decisions"]):
            field = f"pacing.decisions[{index}]"
            if not isinstance(entry, list) or len(entry) != 2:
                raise ConfigError(f"{field} must be [first_step, seq_len], but is {entry!r:.80}")
            least = decisions[-1].first_step + 1 if decisions else 1
            decisions.append(Decision(whole_number(entry[0], field, least), whole_number(entry[1], field, 1)))
        lowest = None if data["lowest"] is None else _finite(data["lowest"], "pacing.lowest")
        seen, waited = (whole_number(data[name], f"pacing.{name}") for name in ("seen", "waited"))
        return cls(tuple(decisions), _finite(data["average"], "pacing.average"), seen, lowest, waited)


def _finite(value: object, field: str) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):  # type: ignore[arg-type]
        raise ConfigError(f"{field} must be a finite number, but is {value!r:.80}")
    return float(value)  # type: ignore[arg-type]
