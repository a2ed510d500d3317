"""Tells a spike before it is trained on: the detector behind training.on_spike.

A step stands out if its loss, or its gradient norm, lies more than k standard deviations above the mean of that
quantity in the last 128 steps that were trained, and at least a tenth (the loss) or once again as much (the norm) above
that mean. The second half is for curves so quiet that a harmless wobble is many deviations: 6 are OLMo-core's measure
(`SkipStepOptimizer`), a rise by a tenth is a jump from 3.0 to 3.3.

What must not fool it:

- A value that is not finite, or that stood out, is not trained on and does not enter the window. One NaN in OLMo-core's
  window makes every comparison false until it leaves.
- Short sequences have higher and noisier losses. So a step is judged by steps of its own length or shorter ones alone:
  their mean is too high rather than too low. A length that rises keeps the whole window; one that falls, or a schedule
  of mixed lengths, judges nothing until there are enough values.
- At the beginning of training, and after a growth, which empties the window, there is nothing to compare with: fewer
  than 63 values judge nothing. While the learning rate warms up, losses fall and norms drift; a steady drift is never
  more than 1.8 deviations above the mean of its own window.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from megatron_slw.config.errors import ConfigError
from megatron_slw.progress import whole_number

WINDOW = 128
LEAST_VALUES = WINDOW // 2 - 1
LOSS_RISE = 1.1
NORM_RISE = 2.0

Entry = tuple[int, float, float]
"""(length, loss, gradient norm) of a step that was trained."""


@dataclass(frozen=True)
class SpikeWindow:
    """The last WINDOW steps that were trained, oldest first. The checkpoint stores it, so a resume is not blind."""

    entries: tuple[Entry, ...] = ()

    def judge(self, sigmas: float, seq_len: int, loss: float, grad_norm: float | None = None) -> str | None:
        """Why a step stands out, in words; None if it does not. A pure function, so all ranks decide alike.

        Args:
            sigmas: the standard deviations, which divide by n - 1.
            seq_len: of the step.
            loss: of the step; finite.
            grad_norm: before clipping, finite; None where it is not known yet.
        """
        before = [entry for entry in self.entries if entry[0] <= seq_len]
        if len(before) < LEAST_VALUES:
            return None
        said = _stands_out("loss", loss, [entry[1] for entry in before], sigmas, LOSS_RISE)
        if said is None and grad_norm is not None:
            said = _stands_out("gradient norm", grad_norm, [entry[2] for entry in before], sigmas, NORM_RISE)
        return said

    def after(self, seq_len: int, loss: float, grad_norm: float) -> SpikeWindow:
        """The window with one more step that was trained; unchanged by values that are not finite."""
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            return self
        return SpikeWindow((*self.entries[1 - WINDOW :], (seq_len, loss, grad_norm)))

    def to_json(self) -> list[list[float]]:
        """Return a JSON list that `from_json` reads back, bit for bit."""
        return [list(entry) for entry in self.entries]

    @classmethod
    def from_json(cls, data: object) -> SpikeWindow:
        """Read what `to_json` wrote; anything else raises ConfigError naming the field."""
        if not isinstance(data, list) or len(data) > WINDOW:
            raise ConfigError(f"spike_window must be a list of at most {WINDOW} steps, but is {data!r:.80}")
        return cls(tuple(_entry(entry, f"spike_window[{i}]") for i, entry in enumerate(data)))


def _stands_out(name: str, value: float, before: list[float], sigmas: float, rise: float) -> str | None:
    mean = math.fsum(before) / len(before)
    deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in before) / (len(before) - 1))
    if value <= mean + sigmas * deviation or value < rise * mean:
        return None
    return (
        f"the {name} {value:.4g} stands out: the last {len(before)} have mean {mean:.4g} and standard deviation "
        f"{deviation:.3g}"
    )


def _entry(entry: object, field: str) -> Entry:
    if not isinstance(entry, list) or len(entry) != 3:
        raise ConfigError(f"{field} must be [length, loss, gradient norm], but is {entry!r:.80}")
    for value in entry[1:]:
        if type(value) not in (int, float) or not math.isfinite(value):
            raise ConfigError(f"{field} must hold finite numbers, but has {value!r:.80}")
    return whole_number(entry[0], f"{field} length", least=1), float(entry[1]), float(entry[2])
