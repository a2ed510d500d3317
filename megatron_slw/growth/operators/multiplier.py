"""Factors on the optimizer's rates that a growth leaves behind, for each family of tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from megatron_slw.config.errors import ConfigError


@dataclass(frozen=True)
class Multiplier:
    """Factors for the parameters of one family; all above 0."""

    lr: float = 1.0
    weight_decay: float = 1.0
    eps: float = 1.0
    gradient: float = 1.0
    """Of the gradient itself, so that the norm over all tensors, by which gradients are clipped, is the small one's."""

    def times(self, other: Multiplier) -> Multiplier:
        """Both."""
        return Multiplier(**{name: value * getattr(other, name) for name, value in asdict(self).items()})

    def to_json(self) -> dict[str, float]:
        """Return a JSON object that `from_json` reads back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: object, field: str) -> Multiplier:
        """Read what `to_json` wrote; anything else raises ConfigError naming `field`."""
        names = [item.name for item in fields(cls)]
        if not isinstance(data, Mapping) or set(data) != set(names):
            raise ConfigError(f"{field} must be an object with {', '.join(names)}, but is {data!r:.80}")
        for name, value in data.items():
            if type(value) not in (int, float) or not 0.0 < value < math.inf:
                raise ConfigError(f"{field}.{name} must be a number above 0, but is {value!r:.80}")
        return cls(**{name: float(value) for name, value in data.items()})
