"""What a text costs, in the units that people compare."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Score:
    """What a stream costs under a model."""

    nats: float
    """Sum of -log p over the labels."""
    labels: int

    @property
    def loss(self) -> float:
        """Nats per label."""
        return self.nats / self.labels

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return safe_exp(self.loss)

    def __add__(self, other: Score) -> Score:
        return Score(self.nats + other.nats, self.labels + other.labels)


def safe_exp(value: float) -> float:
    """exp(value); infinity where that is beyond a float."""
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def bits_per_byte(nats: float, text_bytes: int) -> float:
    """nats / ln 2 / bytes: comparable between tokenizers, and with a compressor's 8 x compressed / bytes.

    Args:
        nats: negative log-likelihood of all tokens of the text.
        text_bytes: UTF-8 bytes of the same text.

    Raises:
        ValueError: there is no text.
    """
    if text_bytes < 1:
        raise ValueError(f"bits per byte need at least 1 byte of text, not {text_bytes}")
    return nats / math.log(2) / text_bytes
