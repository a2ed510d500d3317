"""training.grow_when auto: a run ends at its growth point, on all ranks, and stays ended."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_slw.checkpoint.format import latest_checkpoint
from megatron_slw.config.schema import RunConfig
from megatron_slw.growth.record import GrowthRecord
from megatron_slw.progress import Progress
from megatron_slw.testing import WorkerPool, tiny_config, write_tiny_dataset
from megatron_slw.train.growth_point import grown_from
from megatron_slw.train.metrics import FILE_NAME, MetricsWriter, read_metrics
from tests.train.run_jobs import train_run
from tests.train.test_metrics import metrics


def config_for(folder: Path, world: int, slope: float) -> RunConfig:
    """Validated after each of 25 steps; steps 10 to 25 are at the full length."""
    return tiny_config(
        folder, world_size=world, evaluation__interval=1, training__train_steps=25, training__grow_when="auto",
        training__grow_slope=slope,
    )  # fmt: skip


@pytest.mark.parametrize("world", [1, 2])
def test_it_ends_there_and_a_restart_trains_nothing(pool: WorkerPool, tmp_path: Path, world: int) -> None:
    """Every loss is flatter than the slope asked for: the eighth loss at full length decides."""
    write_tiny_dataset(tmp_path / "data")
    config = config_for(tmp_path, world, slope=-9.0)
    ends = pool.run(train_run, world, (config,))
    assert {end.step for end in ends} == {18}
    newest = latest_checkpoint(tmp_path / "run" / "checkpoints")
    assert newest is not None and newest.name == "step_000018"
    before = (tmp_path / "run" / FILE_NAME).read_text()
    assert {end.step for end in pool.run(train_run, world, (config,))} == {18}
    assert (tmp_path / "run" / FILE_NAME).read_text() == before
    on = config.model_copy(update={"training": config.training.model_copy(update={"grow_when": None})})
    assert {end.step for end in pool.run(train_run, world, (on,))} == {25}


def test_a_steep_run_goes_to_its_end(pool: WorkerPool, tmp_path: Path) -> None:
    write_tiny_dataset(tmp_path / "data")
    assert pool.run(train_run, 1, (config_for(tmp_path, 1, slope=-1e-9),))[0].step == 25


def record(step: int, *history: str) -> GrowthRecord:
    return GrowthRecord(step=step, lr_shift_tokens=70, history=history)


def test_the_first_record_names_the_smaller_model() -> None:
    depth, width = "step 5: 2 layers x 16 -> 4 layers x 16, depth", "step 5: 4 layers x 16 -> 4 layers x 32, width"
    expected = {"grown_from": "2 layers x 16 at step 5", "lr_shift_tokens": 70}
    assert grown_from(record(5, depth, width), Progress(5)) == expected, "two stages are one growth"
    assert grown_from(record(0, depth), Progress()) == expected, "a clock that began again"
    later = record(5, depth, "step 9: 4 layers x 16 -> 8 layers x 16, exact")
    assert grown_from(later, Progress(9)) == {"grown_from": "4 layers x 16 at step 9", "lr_shift_tokens": 70}
    assert grown_from(record(5, depth), Progress(7)) is None, "a resume of the grown run"
    assert grown_from(None, Progress(5)) is None


def test_a_grown_run_says_so_once(tmp_path: Path) -> None:
    mark = {"grown_from": "2 layers x 16 at step 5", "lr_shift_tokens": 70}
    for start, grown in ((5, mark), (7, None)):
        with MetricsWriter(tmp_path, Progress(start), grown=grown) as writer:
            writer.step(metrics(start + 1))
            writer.step(metrics(start + 2))
    found = read_metrics(tmp_path / FILE_NAME)[0]
    assert [step.get("grown_from") for step in found] == [mark["grown_from"], None, None, None]
    assert [step.get("resumed") for step in found] == [None, None, True, None]
