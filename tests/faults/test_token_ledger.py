"""Runs that are killed at random moments and started again: no label lost, none trained twice, in what is committed."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_slw.config.schema import RunConfig
from megatron_slw.slw.ledger import MODES
from megatron_slw.slw.plan import Plan
from megatron_slw.testing import WorkerPool, tiny_config
from tests.data.token_datasets import INT32, write_dataset
from tests.faults import resume_jobs
from tests.faults.spike_jobs import differing

STEPS, LENGTH, VOCAB, KILLS = 9, 16, 1500, 3
LATEST = 60
"""Operations after which a start dies at the latest; all of a run are about twice as many."""
QUICK = "seqlen_tailpack"
PARAMS = [
    pytest.param(mode, seed, id=f"{mode}-seed{seed}", marks=[pytest.mark.campaign] if seed or mode != QUICK else [])
    for seed in range(4)
    for mode in MODES
]
"""20 runs."""
Attempt = dict[str, Any]


def config_for(folder: Path, run: str, mode: str) -> RunConfig:
    curriculum = {
        "schedule_type": "fixed_discrete", "min_difficulty": 4, "max_difficulty": LENGTH, "difficulty": [4, 7, LENGTH],
        "max_step": [3, 5], "mode": mode,
    }  # fmt: skip
    return tiny_config(
        folder, logging__directory=str(folder / run), model={"seq_length": LENGTH, "vocab_size": VOCAB},
        data={"split": "100,0,0"}, training={"train_steps": STEPS}, curriculum=curriculum,
        checkpoint={"interval": 2, "keep_last": 2},
    )  # fmt: skip


def committed(attempts: list[Attempt]) -> list[np.ndarray]:
    """The batches that the final weights have seen: of each attempt those in the checkpoint that the next began with.

    Counted at the save, not by the number of the step, which could itself be wrong.
    """
    inside: dict[int, list[np.ndarray]] = {0: []}
    history: list[np.ndarray] = []
    for one in attempts:
        history = [*inside[one["start"]], *one["trained"]]
        began = len(inside[one["start"]])
        inside |= {step: history[: began + count] for step, count in one["holds"].items()}
    return history


def killed_run(pool: WorkerPool, config: RunConfig, seed: int) -> list[Attempt]:
    """Start the run until it ends; at random moments the first starts die, unless they end before."""
    chosen = random.Random(seed)
    attempts: list[Attempt] = []
    while not attempts or not attempts[-1]["ended"]:
        dies_at = chosen.randint(1, LATEST) if len(attempts) < KILLS else None
        attempts += pool.run(resume_jobs.attempt, 1, (config, dies_at))
    return attempts


@pytest.mark.fault(3)
@pytest.mark.parametrize(("mode", "seed"), PARAMS)
def test_no_label_is_lost_or_repeated(
    pool: WorkerPool, tmp_path: Path, mode: str, seed: int, injections: Callable[[int], None]
) -> None:
    ends = (0, 200, 300, STEPS * 8 * LENGTH + 1)
    write_dataset(tmp_path / "data", [range(*pair) for pair in pairwise(ends)], INT32, None)
    config = config_for(tmp_path, "killed", mode)
    attempts = killed_run(pool, config, 100 * MODES.index(mode) + seed)
    kills = len(attempts) - 1
    assert kills, "not killed"
    injections(kills)
    history, planned = committed(attempts), attempts[-1]["planned"]
    assert len(history) == len(planned) == STEPS, f"{len(history)} batches for {STEPS} steps"
    for step, (labels, expected) in enumerate(zip(history, planned, strict=True)):
        assert np.array_equal(labels, expected), f"step {step} trained other labels"
    check_counts(mode, np.bincount(np.concatenate(history), minlength=VOCAB), attempts[-1])
    if seed == 0:
        (straight,) = pool.run(resume_jobs.attempt, 1, (config_for(tmp_path, "straight", mode), None))
        assert differing(straight["state"], attempts[-1]["state"]) == [], "other weights than without the kills"


def check_counts(mode: str, counts: np.ndarray, last: Attempt) -> None:
    """What the mode promises, label by label; the tokens of the dataset count up, so a label names its place."""
    plan: Plan = last["plan"]
    assert counts.sum() == plan.tokens_trained
    assert counts.max() == (2 if mode == "seqlen_revisit" and plan.tokens_repeated else 1), "a label came too often"
    assert (counts == 2).sum() == plan.tokens_repeated
    samples = plan.progress_at(plan.total_steps).samples
    drawn, untrained = samples * LENGTH, plan.tokens_untrained_at(plan.total_steps)
    assert (counts > 0).sum() == drawn - untrained, "labels are lost"
