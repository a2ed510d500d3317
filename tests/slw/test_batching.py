"""Merging accumulation micro-batches: what is chosen, and that the choice is a division of the same rows."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_slw.config.schema import RunConfig
from megatron_slw.slw.batching import OVERHEAD_TOKENS, micro_batching
from megatron_slw.testing import tiny_config


def config(rows: int, steps: int, full: int, stages: int = 1, tokens: int | None = None) -> RunConfig:
    """One replica with `steps` micro-batches of `rows` rows at the full length."""
    changes: dict[str, Any] = {"training__micro_batch_tokens": tokens} if tokens else {}
    return tiny_config(
        "unused", model__seq_length=full, model__num_layers=stages, parallel={"pipeline": stages}, world_size=stages,
        train_batch_size=rows * steps, micro_batch_size=rows, curriculum=None, **changes,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("length", "rows", "parts"), [(1024, 8, 64), (512, 16, 32), (520, 8, 64), (64, 128, 4), (16, 512, 1), (8, 512, 1)]
)
def test_merged_up_to_the_tokens_of_a_full_micro_batch(length: int, rows: int, parts: int) -> None:
    assert micro_batching(config(8, 64, 1024), length) == (rows, parts)


def test_the_budget_can_be_raised_or_taken_away() -> None:
    assert micro_batching(config(8, 64, 1024, tokens=16384), 1024) == (16, 32)
    assert micro_batching(config(8, 64, 1024, tokens=1), 8) == (8, 64)


def test_a_pipeline_keeps_enough_micro_batches_for_its_bubble() -> None:
    """64 micro-batches of 64 tokens on four stages: one merged micro-batch would idle three stages of four."""
    whole = micro_batching(config(8, 64, 1024, stages=1), 8)
    piped = micro_batching(config(8, 64, 1024, stages=4), 8)
    assert whole == (512, 1)
    assert piped.parts == 8, "not the minimum of (m + 3) x (overhead + 4096 / m)"
    costs = {m: (m + 3) * (OVERHEAD_TOKENS + 4096 // m) for m in (1, 2, 4, 8, 16, 32, 64)}
    assert costs[piped.parts] == min(costs.values()), costs


@given(
    rows=st.integers(1, 16), steps=st.integers(1, 96), length=st.integers(1, 512), stages=st.sampled_from([1, 2, 4]),
    tokens=st.none() | st.integers(1, 20_000),
)  # fmt: skip
def test_the_rows_stay_and_the_budget_holds(
    rows: int, steps: int, length: int, stages: int, tokens: int | None
) -> None:
    made = config(rows, steps, 512, stages, tokens)
    found = micro_batching(made, length)
    assert found.rows * found.parts == rows * steps, "rows were lost"
    assert found.rows % rows == 0, "not whole micro-batches"
    assert found.rows == rows or found.rows * length <= (tokens or rows * 512), "over the budget"
