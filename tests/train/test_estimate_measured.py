"""The memory estimate against the bytes that the tensors of real steps hold at their peak."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_slw.testing import WorkerPool
from tests.train import memory_job

DROPOUT = {"model.hidden_dropout": 0.1, "model.attention_dropout": 0.1}
TENSOR, PIPELINE = {"parallel.tensor": 2}, {"parallel.pipeline": 2}
RECOMPUTE = {"training.activation_checkpointing": True}
MICRO = {"train_micro_batch_size_per_gpu": 2}
OPERATORS: dict[str, dict[str, Any]] = {
    "torch": {"ops.backend": "torch"},
    "default": {},
    "chunked": {"ops.cross_entropy": "chunked"},
}
BF16 = {"bf16.enabled": True, "zero_optimization.stage": 1}


@pytest.mark.parametrize(
    ("world_size", "changes"),
    [
        (1, {}),
        (1, {"model.attention": "fused_softmax"} | DROPOUT),
        (1, DROPOUT),
        (1, MICRO),
        (1, RECOMPUTE),
        (1, {"zero_optimization.stage": 1}),
        (1, BF16 | DROPOUT),
        (2, TENSOR | RECOMPUTE | BF16),
        (2, TENSOR | {"parallel.sequence_parallel": True}),
        (2, PIPELINE | MICRO),
        (2, {"zero_optimization.stage": 2}),
        (2, {"zero_optimization.stage": 3}),
    ],
    ids=[
        "fp32",
        "fused-softmax",
        "dropout",
        "accumulation",
        "recompute",
        "zero1",
        "bf16",
        "tensor-recompute-bf16",
        "sequence-parallel",
        "pipeline",
        "zero2",
        "zero3",
    ],
)
@pytest.mark.parametrize("ops", OPERATORS)
def test_the_estimate_is_within_15_percent_of_the_measured_peak(
    pool: WorkerPool, world_size: int, changes: dict[str, Any], ops: str
) -> None:
    """On PyTorch's operators, on the fused ones, and with the loss in chunks."""
    for measured, estimated in pool.run(memory_job.measured_and_estimated, world_size, (changes | OPERATORS[ops],)):
        assert estimated == pytest.approx(measured, rel=0.15)


@pytest.mark.parametrize("attention", ["sdpa", "fused_softmax"])
@pytest.mark.parametrize("changes", [RECOMPUTE, BF16, PIPELINE | MICRO])
def test_documents_cost_what_the_estimate_says(pool: WorkerPool, changes: dict[str, Any], attention: str) -> None:
    """Beside all the rest 15 % would hide it: one bias for all layers, not one for each, and none forgotten."""
    documents = {"data.reset_position_ids": True, "data.reset_attention_mask": True}
    world_size, changes = 2 if "parallel.pipeline" in changes else 1, changes | {"model.attention": attention}
    with_them = pool.run(memory_job.measured_and_estimated, world_size, (changes | documents,))
    without = pool.run(memory_job.measured_and_estimated, world_size, (changes,))
    for after, before in zip(with_them, without, strict=True):
        measured, estimated = (a - b for a, b in zip(after, before, strict=True))
        assert estimated == pytest.approx(measured, rel=0.05, abs=10_000)  # beside a bias of 130,000 and more
        assert attention == "fused_softmax" or estimated > 100_000
