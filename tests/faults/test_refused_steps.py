"""NaN, infinity or a spike, in loss or gradient, on any rank: nothing is updated on any, and training can go on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_slw.testing import WorkerPool, tiny_config
from tests.faults import spike_jobs

TP2, PP2 = {"tensor": 2}, {"pipeline": 2}
LAYOUTS: dict[str, dict[str, Any]] = {
    "one": {},
    "dp2": {"world_size": 2},
    "tp2": {"world_size": 2, "parallel": TP2},
    "pp2": {"world_size": 2, "parallel": PP2},
    "zero1": {"world_size": 2, "zero_stage": 1},
    "zero3": {"world_size": 2, "zero_stage": 3},
    "zero1-bf16": {"world_size": 2, "zero_stage": 1, "precision": "bf16"},
    "zero2-bf16": {"world_size": 2, "zero_stage": 2, "precision": "bf16"},
}
MORE: dict[str, dict[str, Any]] = {
    "zero2": {"world_size": 2, "zero_stage": 2},
    "zero3-bf16": {"world_size": 2, "zero_stage": 3, "precision": "bf16"},
    "tp2-zero1-bf16": {"world_size": 2, "parallel": TP2, "zero_stage": 1, "precision": "bf16"},
    "tp2-pp2": {"world_size": 4, "parallel": TP2 | PP2},
    "pp2-dp2-zero1-bf16": {"world_size": 4, "parallel": PP2, "zero_stage": 1, "precision": "bf16"},
    "sgd-dp2": {"world_size": 2, "optimizer": {"type": "SGD", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.0}},
}
QUICK = ("one", "dp2", "tp2", "pp2", "zero3", "zero1-bf16")
PARAMS = [name if name in QUICK else pytest.param(name, marks=pytest.mark.campaign) for name in LAYOUTS | MORE]


def check(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    for rank, (after, plain) in enumerate(zip(found, expected, strict=True)):
        assert not after["wrong"], f"rank {rank}: (kind, place, rank, said, moved): {after['wrong'][:4]}"
        assert after["losses"] == plain["losses"], f"rank {rank}: losses differ"
        differing = spike_jobs.differing(plain["state"], after["state"])
        assert not differing, f"rank {rank}: {differing[:3]} differ from a run without the step"


@pytest.mark.fault(9)
@pytest.mark.parametrize("layout", PARAMS)
def test_every_fault_is_refused_and_leaves_no_trace(
    pool: WorkerPool, tmp_path: Path, layout: str, injections: Callable[[int], None]
) -> None:
    """One step meets each fault on each rank in turn, and is then left out: the run that never had it, bit for bit."""
    dropout = {"model__hidden_dropout": 0.1, "model__attention_dropout": 0.1}
    config = tiny_config(tmp_path, **(LAYOUTS | MORE)[layout], **dropout)
    faults = spike_jobs.places(config)
    injections(len(faults))
    found = pool.run(spike_jobs.refused_in_turn, config.world_size, (config, faults))
    check(found, pool.run(spike_jobs.left_out, config.world_size, (config,)))


@pytest.mark.parametrize("layout", ["pp2", *(pytest.param(name, marks=pytest.mark.campaign) for name in MORE)])
def test_what_is_judged_is_what_is_reported(pool: WorkerPool, tmp_path: Path, layout: str) -> None:
    """On every rank alike, at several accumulation steps and lengths."""
    config = tiny_config(tmp_path, **(LAYOUTS | MORE)[layout])
    ranks = pool.run(spike_jobs.judged_and_reported, config.world_size, (config,))
    assert all(found == ranks[0] for found in ranks), "ranks judge by different numbers"
    for loss, reported_loss, norm, reported_norm in ranks[0]:
        assert loss == pytest.approx(reported_loss, rel=1e-6) and norm == reported_norm


@pytest.mark.fault(9)
def test_a_spike_does_not_move_fp16s_loss_scale(
    pool: WorkerPool, tmp_path: Path, injections: Callable[[int], None]
) -> None:
    """NaN and infinity are the loss scaler's to handle there; a spike that it lets through is refused like any."""
    config = tiny_config(tmp_path, world_size=2, zero_stage=1, precision="fp16")
    scaling = {"enabled": True, "initial_scale_power": 8, "loss_scale_window": 2, "hysteresis": 1}
    config = config.model_copy(update={"deepspeed": config.deepspeed | {"fp16": scaling}})
    faults = [("rise", "gradient", rank) for rank in range(2)]
    injections(len(faults))
    found = pool.run(spike_jobs.fp16, 2, (spike_jobs.refused_in_turn, config, faults))
    check(found, pool.run(spike_jobs.fp16, 2, (spike_jobs.left_out, config)))


def test_the_faults_are_real(pool: WorkerPool, tmp_path: Path) -> None:
    """The test above can fail: a spike that nobody judges is trained on."""
    config = tiny_config(tmp_path)
    moved = pool.run(spike_jobs.unjudged, 1, (config,))[0]
    assert np.any(moved), "the spike changes nothing"
