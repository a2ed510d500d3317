"""A save in the background is that of its moment, bit for bit, while training goes on; its errors are everybody's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_slw.checkpoint.format import complete_checkpoints
from megatron_slw.testing import WorkerPool, tiny_config, write_tiny_dataset
from megatron_slw.train.estimate import host_copy
from tests.checkpoint import background_jobs
from tests.checkpoint.test_resume import LAYOUTS


def config_for(folder: Path, name: str, **changes: Any) -> Any:
    changes = {"checkpoint__asynchronous": True} | changes
    return tiny_config(folder, logging__directory=str(folder / name), **changes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tiny_dataset(tmp_path / "data")
    return tmp_path


def files_of(checkpoint: Path) -> dict[str, Any]:
    """SHA-256 of the tensors and indices, and the state but for what names the run's own directory."""
    files = json.loads((checkpoint / "manifest.json").read_text())["files"]
    state = json.loads((checkpoint / "state.json").read_text())
    del state["config"]["checkpoint"], state["config"]["logging"], files["state.json"]
    return files | {"state": state}


@pytest.mark.parametrize("layout", ["one", "dp2", "tp2", "pp2", "zero1-dp2", "zero3-dp2-bf16", "pp2-dp2-zero1-bf16"])
def test_the_same_bytes_as_a_synchronous_save(pool: WorkerPool, folder: Path, layout: str) -> None:
    """The thread begins to write when two more steps were trained: what it writes is the state of the save."""
    config = config_for(folder, "later", **LAYOUTS[layout])
    pool.run(background_jobs.saved_at_once, config.world_size, (config, folder / "beside"))
    said = pool.run(background_jobs.saved_later, config.world_size, (config,))
    written = folder / "later" / "checkpoints" / "step_000002"
    assert said[0] == [f"saved {written}"]
    assert files_of(written) == files_of(folder / "beside" / "step_000002")


@pytest.mark.parametrize("on_error", ["stop", "continue"])
def test_an_error_of_one_rank_is_everybodys(pool: WorkerPool, folder: Path, on_error: str) -> None:
    config = config_for(folder, "run", world_size=2, zero_stage=1, checkpoint__on_error=on_error)
    (first, second, third), other = pool.run(background_jobs.fails_in_flight, 2, (config, 1))
    assert other == (first, second, third), "the ranks do not agree"
    assert "No space left on device (rank 1)" in first
    assert first.startswith("raised checkpoint" if on_error == "stop" else "warning: checkpoint"), first
    if on_error == "continue":
        assert first.endswith("Training goes on; nothing was saved yet.")
    assert second == f"saved {folder / 'run' / 'checkpoints' / 'step_000002'}", "it does not recover"
    assert third.startswith("raised") and "No space left" in third, "the last save may not be passed over"
    assert [path.name for path in (folder / "run" / "checkpoints").iterdir()] == ["step_000002"]


def test_at_most_one_is_in_flight(pool: WorkerPool, folder: Path) -> None:
    said = pool.run(background_jobs.one_in_flight, 2, (config_for(folder, "run", world_size=2),))
    assert len(said[0]) == 3, said
    assert len(complete_checkpoints(folder / "run" / "checkpoints")) == 3


@pytest.mark.parametrize("layout", ["one", "tp2", "pp2", "zero1-dp2", "zero3-dp2"])
def test_the_dry_run_knows_the_memory(pool: WorkerPool, folder: Path, layout: str) -> None:
    config = config_for(folder, "run", **LAYOUTS[layout])
    sizes = pool.run(background_jobs.copied_bytes, config.world_size, (config,))
    assert max(sizes) <= host_copy(config) <= 2 * max(sizes), (sizes, host_copy(config))
