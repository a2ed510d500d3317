"""Runs that SIGKILL ends at random moments, started again: in what is committed no label is lost or trained twice."""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_slw.config.schema import RunConfig
from megatron_slw.slw.compile import compile_plan
from megatron_slw.slw.ledger import MODES
from megatron_slw.slw.plan import Plan
from megatron_slw.testing import tiny_config
from tests.data.token_datasets import INT32, write_dataset
from tests.faults import resume_jobs
from tests.faults.killing import Forks
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
Attempt = list[dict[str, Any]]
"""What one start noted."""


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


def committed(attempts: list[Attempt]) -> list[list[int]]:
    """The batches that the final weights have seen: of each attempt those in the checkpoint that the next began with.

    Counted at the save, not by the number of the step, which could itself be wrong.
    """
    inside: dict[int, list[list[int]]] = {0: []}
    history: list[list[int]] = []
    for notes in attempts:
        start = notes[0]["start"]
        trained = [note["trained"] for note in notes if "trained" in note]
        history = [*inside[start], *trained]
        began = len(inside[start])
        inside |= {note["saved"]: history[: began + note["holds"]] for note in notes if "saved" in note}
    return history


def killed_run(config: RunConfig, seed: int, kills: int = KILLS) -> list[Attempt]:
    """Start the run until it ends; at random moments the first starts die, unless they end before."""
    chosen, forks = random.Random(seed), Forks()
    attempts: list[Attempt] = []
    code: int | None = -signal.SIGKILL
    while code == -signal.SIGKILL:
        dies_at = chosen.randint(1, LATEST) if len(attempts) < kills else None
        notes = Path(f"{config.logging.directory}-{len(attempts)}.jsonl")
        (code,) = forks.run(resume_jobs.attempt, [(config, dies_at, str(notes))])
        attempts.append([json.loads(line) for line in notes.read_text().splitlines()])
    assert code == 0, f"start {len(attempts)} failed with {code}"
    return attempts


def end_state(config: RunConfig, attempts: list[Attempt]) -> dict[str, np.ndarray]:
    with np.load(f"{config.logging.directory}-{len(attempts) - 1}.jsonl.npz") as file:
        return dict(file)


@pytest.mark.fault(3)
@pytest.mark.parametrize(("mode", "seed"), PARAMS)
def test_no_label_is_lost_or_repeated(
    tmp_path: Path, mode: str, seed: int, injections: Callable[[int], None]
) -> None:
    ends = (0, 200, 300, STEPS * 8 * LENGTH + 1)
    write_dataset(tmp_path / "data", [range(*pair) for pair in pairwise(ends)], INT32, None)
    config = config_for(tmp_path, "killed", mode)
    attempts = killed_run(config, 100 * MODES.index(mode) + seed)
    kills = len(attempts) - 1
    assert kills, "not killed"
    injections(kills)
    history, planned = committed(attempts), attempts[-1][-1]["planned"]
    assert len(history) == len(planned) == STEPS, f"{len(history)} batches for {STEPS} steps"
    for step, (labels, expected) in enumerate(zip(history, planned, strict=True)):
        assert labels == expected, f"step {step} trained other labels"
    check_counts(mode, np.bincount(sum(history, []), minlength=VOCAB), compile_plan(config))
    if seed == 0:
        alone = config_for(tmp_path, "straight", mode)
        whole = end_state(alone, killed_run(alone, seed, kills=0))
        assert differing(whole, end_state(config, attempts)) == [], "other weights than without the kills"


def check_counts(mode: str, counts: np.ndarray, plan: Plan) -> None:
    """What the mode promises, label by label; the tokens of the dataset count up, so a label names its place."""
    assert counts.sum() == plan.tokens_trained
    assert counts.max() == (2 if mode == "seqlen_revisit" and plan.tokens_repeated else 1), "a label came too often"
    assert (counts == 2).sum() == plan.tokens_repeated
    samples = plan.progress_at(plan.total_steps).samples
    drawn, untrained = samples * LENGTH, plan.tokens_untrained_at(plan.total_steps)
    assert (counts > 0).sum() == drawn - untrained, "labels are lost"
