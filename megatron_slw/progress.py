"""The only clock of a run: how many steps, samples and tokens were trained so far.

Data position, sequence length, learning rate and random numbers are derived from it, never counted on the
side. That is what makes a resume exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from megatron_slw.config.errors import ConfigError

INT64_MAX = 2**63 - 1


def whole_number(value: object, field: str, least: int = 0) -> int:
    """Return `value` if it is an integer in [least, 2**63), for numbers read from a file.

    A bool is refused although Python calls it an int, and so is 8.0: this program wrote neither.

    Raises:
        ConfigError: naming `field`.
    """
    if type(value) is not int:
        raise ConfigError(f"{field} must be a whole number, but is {value!r:.80}")
    if not least <= value <= INT64_MAX:
        raise ConfigError(f"{field} must lie between {least} and {INT64_MAX}, but is {str(value)[:40]}")
    return value


@dataclass(frozen=True)
class Progress:
    """What was trained so far. The loop replaces it after each step, the checkpoint stores it."""

    step: int = 0
    """Optimizer steps done; also the 0-based index of the next one."""
    samples: int = 0
    """Rows trained, over all data-parallel ranks."""
    tokens: int = 0
    """Labels trained: rows x the length they were cut to. What the warmup discarded is not in it."""

    def to_json(self) -> dict[str, int]:
        """Return a JSON object that `from_json` reads back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: object) -> Progress:
        """Read what `to_json` wrote; a missing, extra or wrongly typed field raises ConfigError."""
        names = ("step", "samples", "tokens")
        if not isinstance(data, Mapping) or set(data) != set(names):
            raise ConfigError(
                f"progress must be an object with the fields {', '.join(names)}, but is {data!r:.80}"
            )
        return cls(*(whole_number(data[name], f"progress.{name}") for name in names))
