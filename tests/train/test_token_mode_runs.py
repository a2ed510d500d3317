"""Whole runs of the token modes and of loss_adaptive pacing: what they train, and that a resume goes on exactly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_slw.checkpoint.format import step_folder
from megatron_slw.checkpoint.load import Checkpoint
from megatron_slw.config.schema import CurriculumConfig
from megatron_slw.testing import WorkerPool, tiny_config, write_tiny_dataset
from megatron_slw.train.metrics import read_metrics
from tests.train.run_jobs import train_run

STAGES = {
    "schedule_type": "fixed_discrete", "min_difficulty": 8, "max_difficulty": 32, "difficulty": (8, 20, 32),
    "max_step": (4, 8),
}  # fmt: skip
PP2 = {"world_size": 2, "parallel": {"pipeline": 2}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("modes")
    write_tiny_dataset(folder / "data", documents=30)
    return folder


def config_for(folder: Path, run: str, curriculum: dict[str, Any] | None, **changes: Any) -> Any:
    training = {"train_steps": None, "train_samples": 90, "lr_decay_style": "constant"} | changes.pop("training", {})
    return tiny_config(
        folder, logging__directory=str(folder / run), curriculum=curriculum, training=training, checkpoint__interval=6,
        checkpoint__keep_last=100, **changes,
    )  # fmt: skip


@pytest.mark.parametrize("mode", ["seqlen_reshape", "seqlen_replay", "seqlen_tailpack", "seqlen_revisit"])
def test_a_limited_run_trains_every_label_and_resumes_in_the_middle(
    pool: WorkerPool, folder: Path, mode: str
) -> None:
    config = config_for(folder, mode, STAGES | {"mode": mode})
    pool.run(train_run, 1, (config,))
    steps, _ = read_metrics(folder / mode / "metrics.jsonl")
    repeated = 4 * 8 * 8 + 4 * 8 * 20 if mode == "seqlen_revisit" else 0
    assert steps[-1]["tokens"] == 90 * 32 + repeated and steps[-1]["samples"] == 90
    assert steps[-1]["tokens_discarded"] == 0
    again = config_for(folder, f"{mode}-resumed", STAGES | {"mode": mode}).model_copy(
        update={"checkpoint": config.checkpoint.model_copy(
            update={"directory": None, "load": str(step_folder(folder / mode / "checkpoints", 12))})}
    )  # fmt: skip
    pool.run(train_run, 1, (again,))
    resumed, _ = read_metrics(folder / f"{mode}-resumed" / "metrics.jsonl")
    assert [s["loss"] for s in resumed] == [s["loss"] for s in steps if s["step"] > 12], "the resumed losses differ"


@pytest.mark.parametrize("layout", [{"world_size": 2}, PP2], ids=["dp2", "pp2"])
@pytest.mark.parametrize("mode", ["seqlen_replay", "seqlen_tailpack"])
def test_layouts_train_the_same(pool: WorkerPool, folder: Path, mode: str, layout: dict[str, Any]) -> None:
    name = f"{mode}-{len(layout)}"
    config = config_for(folder, name, STAGES | {"mode": mode}, **layout)
    pool.run(train_run, 2, (config,))
    alone = config_for(folder, f"{name}-alone", STAGES | {"mode": mode})
    pool.run(train_run, 1, (alone,))
    one, two = (read_metrics(folder / run / "metrics.jsonl")[0] for run in (f"{name}-alone", name))
    assert [s["tokens"] for s in one] == [s["tokens"] for s in two]
    assert [s["loss"] for s in one] == pytest.approx([s["loss"] for s in two], rel=2e-6)
    # Two replicas add up in another order. At a rate of 1e-2, Adam makes up to 2e-5 of that in twenty norms.
    assert [s["grad_norm"] for s in one] == pytest.approx([s["grad_norm"] for s in two], rel=1e-4)


def test_rows_that_grow(pool: WorkerPool, folder: Path) -> None:
    """Rows 2, 4, 6, 8 in micro-batches of at most 2: on two replicas as in one process."""
    warmup = CurriculumConfig(
        mode="batch_size", schedule_type="fixed_linear", min_difficulty=2, max_difficulty=8, total_curriculum_step=9,
        difficulty_step=2,
    )  # fmt: skip
    found = {}
    for name, layout in (("rows-one", {}), ("rows-dp2", {"world_size": 2}), ("rows-pp2", PP2)):
        config = config_for(folder, name, None, batch_warmup=warmup, training={"train_samples": 100}, **layout)
        pool.run(train_run, config.world_size, (config,))
        found[name], _ = read_metrics(folder / name / "metrics.jsonl")
    rows = np.diff([0, *(s["samples"] for s in found["rows-one"])]).tolist()
    assert sorted(set(rows)) == [2, 4, 6, 8] and rows[:9] == sorted(rows[:9])
    for name in ("rows-dp2", "rows-pp2"):
        assert [s["loss"] for s in found[name]] == pytest.approx([s["loss"] for s in found["rows-one"]], rel=2e-6)


def test_adaptive_decisions_are_repeated_by_a_resume(pool: WorkerPool, folder: Path) -> None:
    adaptive = {
        "schedule_type": "loss_adaptive", "min_difficulty": 8, "max_difficulty": 32, "difficulty_step": 8,
        "patience": 3, "smoothing": 0.5, "min_improvement": 0.05,
    }  # fmt: skip
    training = {"train_tokens": 8 * 32 * 30, "train_samples": None}
    config = config_for(folder, "adaptive", adaptive, training=training)
    pool.run(train_run, 1, (config,))
    steps, _ = read_metrics(folder / "adaptive" / "metrics.jsonl")
    lengths = [s["seq_len"] for s in steps]
    assert len(set(lengths)) == 4 and lengths == sorted(lengths)
    change = lengths.index(24) + 1
    at = 6 * ((change - 1) // 6)
    assert lengths[at] < 32, "the resume comes after the last decision"
    checkpoint = Checkpoint(step_folder(folder / "adaptive" / "checkpoints", at))
    assert checkpoint.pacing is not None and checkpoint.plan.progress_at(at).tokens == steps[at - 1]["tokens"]
    load = config.checkpoint.model_copy(update={"load": str(checkpoint.path)})
    again = config_for(folder, "adaptive-resumed", adaptive, training=training).model_copy(update={"checkpoint": load})
    pool.run(train_run, 1, (again,))
    resumed, _ = read_metrics(folder / "adaptive-resumed" / "metrics.jsonl")
    assert [(s["seq_len"], s["loss"]) for s in resumed] == [(s["seq_len"], s["loss"]) for s in steps[at:]]
    json.loads((folder / "adaptive-resumed" / "config.json").read_text())
