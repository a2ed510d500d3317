"""A loss curve as a law: what loss costs what, how steep it falls, and where it falls by a given slope.

Everything is a function of the loss, because that is what a growth preserves.

Legend: L loss in nats, S steps or tokens trained, C FLOPs, N parameters but the tables, k parameters after / before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

ALPHA_N, N_C = 0.076, 8.8e13
ALPHA_S, S_C = 0.76, 2.1e3
ALPHA_B, B_C = 0.21, 2.1e8
"""Kaplan et al., arXiv 2001.08361: L = (N_c / N)^a_N + (S_c / S_min)^a_S; critical batch B_c / L^(1 / a_B) tokens. At
that batch S = 2 S_min."""


@dataclass(frozen=True)
class Law:
    """L(S) = floor + scale x S^-exponent, and each unit of S costs cost x L^-batch_power FLOPs."""

    floor: float
    """Nats; where the loss of this model ends."""
    scale: float
    exponent: float
    cost: float = 1.0
    """FLOPs of a step or token."""
    batch_power: float = 0.0
    """0 for a fixed batch; 1 / ALPHA_B where the batch is the critical one all along."""

    def loss(self, done: float) -> float:
        """After `done` steps or tokens."""
        return self.floor + self.scale * done**-self.exponent

    def done(self, loss: float) -> float:
        """Steps or tokens after which the loss is this; infinite at the floor and below."""
        if loss <= self.floor:
            return math.inf
        return float((self.scale / (loss - self.floor)) ** (1.0 / self.exponent))

    def compute(self, loss: float) -> float:
        """FLOPs to reach it."""
        return float(self.cost * loss**-self.batch_power * self.done(loss))

    def slope(self, loss: float) -> float:
        """d log L / d log C there: below 0, and towards 0 as the loss comes to the floor."""
        if loss <= self.floor:
            return 0.0
        return -1.0 / (self.batch_power + loss / (self.exponent * (loss - self.floor)))

    def loss_at_slope(self, slope: float) -> float:
        """The loss at which the curve is that steep; infinite where it is never so steep."""
        share = self.exponent * (-1.0 / slope - self.batch_power)
        return self.floor * share / (share - 1.0) if share > 1.0 else math.inf

    def larger(self, ratio: float, cost: float) -> Law:
        """The curve of a model with `ratio` times the parameters, by Kaplan's law: a lower floor, the same descent."""
        return replace(self, floor=self.floor * ratio**-ALPHA_N, cost=cost)


def kaplan(parameters: float) -> Law:
    """The published law of a model of N parameters, but its tables, at the critical batch; S are steps, C = 6 N B S."""
    return Law(
        floor=(N_C / parameters) ** ALPHA_N,
        scale=(2.0 * S_C) ** ALPHA_S,
        exponent=ALPHA_S,
        cost=6.0 * parameters * B_C,
        batch_power=1.0 / ALPHA_B,
    )


def optimal_slope(batch_power: float = 1.0 / ALPHA_B) -> float:
    """The slope at which a model of any size has the lowest loss for its compute: there it should stop.

    -1 / (1 / a_S + 1 / a_N + 1 / a_B) = -0.052 at the critical batch, -0.069 at a fixed one (batch_power 0).
    """
    return -1.0 / (1.0 / ALPHA_S + 1.0 / ALPHA_N + batch_power)


def best_growth_loss(small: Law, large: Law) -> float:
    """The loss at which growing saves the most: where `large` is dearer than `small` to come to by the most FLOPs.

    Infinite where the larger model is the cheaper one from its first steps on: then there is nothing to gain.
    """
    def gap(position: float) -> float:
        loss = small.floor + math.exp(position)
        return large.compute(loss) - small.compute(loss)

    # The gap has one maximum over the logarithm of the loss above the floor: it falls to minus infinity at the floor.
    grid = [-12.0 + 0.1 * i for i in range(150)]
    best = max(range(len(grid)), key=lambda i: gap(grid[i]))
    if gap(grid[best]) <= 0.0 or best in (0, len(grid) - 1):
        return math.inf
    low, high = grid[best - 1], grid[best + 1]
    for _ in range(100):  # golden section
        left, right = high - (high - low) * 0.618034, low + (high - low) * 0.618034
        low, high = (left, high) if gap(left) < gap(right) else (low, right)
    return small.floor + math.exp(0.5 * (low + high))
