"""How the next token is drawn from the logits. No model.

Shapes: B texts, V ids that may be drawn, K candidates: V, or top_k of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.

    Raises:
        ValueError: a setting is out of range.
    """

    temperature: float = 1.0
    """Logits are divided by it; 0 takes the most probable token."""
    top_k: int | None = None
    """Draw from this many most probable tokens only."""
    top_p: float | None = None
    """Draw from the fewest most probable tokens that together have at least this probability."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature {self.temperature} must be 0 or more")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k {self.top_k} must be 1 or more")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p {self.top_p} must be above 0 and at most 1")

    def generator(self, row: int) -> torch.Generator:
        """The random numbers of one text of a batch: they depend on the seed and the row alone."""
        return torch.Generator().manual_seed(self.seed + row)


def candidates(logits_BV: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor | None]:
    """The tokens that may be drawn: temperature, then top-k, then top-p.

    Args:
        logits_BV: any float type; the temperature must be above 0.
        sampling: the settings.

    Returns:
        Probabilities (B, K) fp32, and the ids (B, K) they belong to; None where K is V, in order.
    """
    logits, ids_BK = logits_BV.float(), None
    if sampling.top_k is not None and sampling.top_k < logits.size(-1):
        logits, ids_BK = logits.topk(sampling.top_k)  # the largest first
    elif sampling.top_p is not None:
        logits, ids_BK = logits.sort(descending=True, stable=True)
    # The largest logit goes first, else a small temperature overflows.
    probabilities_BK = torch.softmax((logits - logits.amax(-1, keepdim=True)) / sampling.temperature, dim=-1)
    if sampling.top_p is not None:
        before_BK = probabilities_BK.cumsum(-1) - probabilities_BK
        probabilities_BK = probabilities_BK.masked_fill(before_BK >= sampling.top_p, 0.0)
        probabilities_BK /= probabilities_BK.sum(-1, keepdim=True)
    return probabilities_BK, ids_BK


def draw(logits_BV: Tensor, sampling: Sampling, generators: Sequence[torch.Generator]) -> list[int]:
    """One token for each text, each by its own generator; no global random state is read or changed.

    A text of a batch is drawn as it would be alone: one number in [0, 1) per token, looked up in the cumulative
    distribution.
    """
    if sampling.temperature == 0:
        return logits_BV.argmax(-1).tolist()
    probabilities_BK, ids_BK = candidates(logits_BV, sampling)
    cumulative_BK = probabilities_BK.double().cpu().cumsum(-1)
    points_B = torch.cat([torch.rand(1, generator=generator) for generator in generators]).double()
    # The first whose cumulative share is above the point: one of probability 0 never is.
    picked_B1 = torch.searchsorted(cumulative_BK, points_B[:, None] * cumulative_BK[:, -1:], right=True)
    if ids_BK is None:
        return picked_B1[:, 0].tolist()
    return ids_BK.cpu().gather(1, picked_B1)[:, 0].tolist()
