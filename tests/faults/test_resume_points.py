"""A resume where a run is at its most delicate goes on bit for bit, and in another layout from the same state."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_slw.checkpoint.format import step_folder
from megatron_slw.config.schema import RunConfig
from megatron_slw.testing import WorkerPool, tiny_config, write_tiny_dataset
from tests.checkpoint import jobs
from tests.checkpoint.test_resume import LAYOUTS
from tests.faults import resume_jobs
from tests.faults.spike_jobs import differing

STEPS, SKIPPED = 10, 5
POINTS = {"mid-warmup": 3, "length change": 4, "after a skipped step": 6, "LR knee": 7, "after an evaluation": 8}
"""Steps done; lengths change after 2, 4, 6 and 9, the rate's warmup ends after 7, step 5 (0-based) is left out."""
DROPOUT = {"model__hidden_dropout": 0.1, "model__attention_dropout": 0.1}
MATRIX = ("one", "tp2", "pp2", "dp2", "tp2-pp2", "zero3-dp2")
SAME = ["one", *(pytest.param(name, marks=pytest.mark.campaign) for name in ("dp2", "pp2", "tp2"))]
Result = list[dict[str, Any]]


def config_for(folder: Path, run: str, layout: str) -> RunConfig:
    training = {"train_steps": STEPS, "lr_decay_style": "cosine", "lr_warmup_steps": 7, "on_spike": "skip"}
    changes = LAYOUTS[layout] | DROPOUT | {"training": training, "logging__directory": str(folder / run)}
    saves = {"interval": 1, "keep_last": 99}
    return tiny_config(folder, evaluation={"interval": 8, "samples": 8}, checkpoint=saves, **changes)


@pytest.mark.fault(1)
@pytest.mark.parametrize("layout", SAME)
def test_five_points_continue_bit_for_bit(
    pool: WorkerPool, tmp_path: Path, layout: str, injections: Callable[[int], None]
) -> None:
    """Loss, weights, moments, next token ids and next random draw of every later step."""
    write_tiny_dataset(tmp_path / "data")
    config = config_for(tmp_path, "run", layout)
    faults = {SKIPPED: ("nan", "loss", config.world_size - 1, 9)}
    straight = pool.run(resume_jobs.noted, config.world_size, (config, faults))
    assert set(straight[0]["losses"]) == set(range(STEPS)) - {SKIPPED}, "the step was not left out"
    injections(len(POINTS))
    for point, step in POINTS.items():
        again = config_for(tmp_path, point, layout)
        saved = step_folder(tmp_path / "run" / "checkpoints", step)
        shutil.copytree(saved, step_folder(tmp_path / point / "checkpoints", step))
        check(point, step, straight, pool.run(resume_jobs.noted, config.world_size, (again, faults)))


def check(point: str, step: int, straight: Result, resumed: Result) -> None:
    for rank, (before, after) in enumerate(zip(straight, resumed, strict=True)):
        where = f"{point}, rank {rank}"
        assert after["start"] == step, f"{where}: not resumed"
        for what in ("losses", "draws"):
            expected = {number: value for number, value in before[what].items() if number >= step}
            assert after[what] == expected, f"{where}: {what} differ"
        for number, tokens in after["tokens"].items():
            assert np.array_equal(tokens, before["tokens"][number]), f"{where}: tokens of step {number} differ"
        wrong = differing(before["state"], after["state"])
        assert not wrong, f"{where}: {wrong[:3]} differ"


Source = tuple[Path, Result, jobs.State]


@pytest.fixture(scope="module")
def source_of(pool: WorkerPool, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Source]:
    """A run of one layout, trained once for all of its targets: its folder, what it trained, its state at step 4."""
    made: dict[str, Source] = {}

    def make(layout: str) -> Source:
        if layout not in made:
            folder = tmp_path_factory.mktemp("matrix")
            write_tiny_dataset(folder / "data")
            config = tiny_config(folder, **LAYOUTS[layout])
            straight = pool.run(jobs.run, config.world_size, (config, 7, (4,)))
            made[layout] = folder, straight, jobs.read_logical(step_folder(folder / "run" / "checkpoints", 4))
        return made[layout]

    return make


PAIRS = [(source, target) for source in MATRIX for target in MATRIX if source != target]


@pytest.mark.campaign
@pytest.mark.fault(2)
@pytest.mark.parametrize(("source", "target"), PAIRS, ids=lambda name: name)
def test_every_ordered_pair_of_layouts(
    pool: WorkerPool, source_of: Callable[[str], Source], source: str, target: str
) -> None:
    """Masters and moments bit-equal, the losses within 1e-6, the same samples in the same order."""
    folder, straight, saved = source_of(source)
    run = folder / target
    shutil.copytree(step_folder(folder / "run" / "checkpoints", 4), step_folder(run / "checkpoints", 4))
    config = tiny_config(folder, logging__directory=str(run), **LAYOUTS[target])
    resumed = pool.run(jobs.run, config.world_size, (config, 7))
    for after in resumed:
        assert after["start"].step == 4, "not resumed"
        assert jobs.unlike(saved, after["restored"]) == [], "not restored bit for bit"
    for step, loss in resumed[0]["losses"].items():
        assert loss == pytest.approx(straight[0]["losses"][step], rel=1e-6), f"step {step}"
        assert np.array_equal(global_batch(straight, step), global_batch(resumed, step)), f"tokens of step {step}"


def global_batch(ranks: Result, step: int) -> np.ndarray:
    """The rows of all replicas in their order."""
    rows = {rank["dp_rank"]: rank["tokens"][step] for rank in ranks}
    return np.concatenate([rows[replica] for replica in sorted(rows)])
