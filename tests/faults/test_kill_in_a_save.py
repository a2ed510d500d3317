"""kill -9 of one of two ranks at 50 points of real saves: what is complete is whole, and the same command goes on.

The points are evenly spread over all file-system calls that the rank makes under the checkpoint directory in two saves
with retention: before and after the manifest, the renames and the deletions.
"""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from megatron_slw.checkpoint import format as layout
from megatron_slw.checkpoint.load import Checkpoint
from megatron_slw.testing import tiny_config, write_tiny_dataset
from tests.faults import kill_jobs
from tests.faults.killing import Forks

LAYOUTS: dict[str, dict[str, Any]] = {
    "dp2": {"zero_stage": 1}, "pp2": {"parallel": {"pipeline": 2}}, "tp2": {"parallel": {"tensor": 2}},
}  # fmt: skip


class Point(NamedTuple):
    """Where a rank dies: before this share of its calls."""

    layout: str
    mode: str
    rank: int
    share: float

    def __str__(self) -> str:
        return f"{self.layout}-{self.mode}-rank{self.rank}-{self.share:.3f}"


def points() -> list[Any]:
    """Rank 0 makes most calls: it dies at 28 points, rank 1 at 24. A few are in the quick selection."""
    found = []
    for name in LAYOUTS:
        for mode, shift in (("now", 0.0), ("later", 0.5)):
            shares = [(0, (i + shift) / 5) for i in range(5)] + [(1, (i + shift) / 4) for i in range(4)]
            found += [Point(name, mode, rank, share) for rank, share in shares]
    quick = {"tp2-later-rank0-0.700", "dp2-now-rank0-0.600"}
    return [
        pytest.param(
            p,
            id=str(p),
            marks=[pytest.mark.fault(11)] * (p.mode == "later") + [pytest.mark.campaign] * (str(p) not in quick),
        )
        for p in found
    ]


@pytest.fixture(scope="module")
def forks() -> Forks:
    return Forks()


@pytest.fixture(scope="module")
def whole(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, str], Any]]:
    """By layout and mode: a run after step 2, the calls that each rank makes from there to step 4, and its end."""
    runs: dict[tuple[str, str], tuple[Path, list[int], dict[str, Any]]] = {}

    def made(name: str, mode: str) -> tuple[Path, list[int], dict[str, Any]]:
        if (name, mode) not in runs:
            folder = tmp_path_factory.mktemp(f"{name}-{mode}")
            write_tiny_dataset(folder / "data")
            start = config_for(folder, name, mode)
            assert forks.run(kill_jobs.trained, [(start, None, "")] * 2) == [0, 0]
            shutil.copytree(folder / "run", folder / "start")
            reports = [str(folder / f"calls{rank}") for rank in range(2)]
            end = config_for(folder, name, mode, 4)
            assert forks.run(kill_jobs.trained, [(end, None, report) for report in reports]) == [0, 0]
            runs[name, mode] = folder, [int(Path(report).read_text()) for report in reports], files(folder)
        return runs[name, mode]

    yield made


def config_for(folder: Path, name: str, mode: str, steps: int = 2) -> Any:
    return tiny_config(
        folder, world_size=2, training__train_steps=steps, curriculum=None, checkpoint__interval=1,
        checkpoint__keep_last=1, checkpoint__asynchronous=mode == "later", **LAYOUTS[name],
    )  # fmt: skip


def files(folder: Path) -> dict[str, Any]:
    """SHA-256 of the tensors after step 4."""
    manifest = json.loads((folder / "run" / "checkpoints" / "step_000004" / layout.MANIFEST).read_text())
    return {name: entry["sha256"] for name, entry in manifest["files"].items() if name.startswith("tensors-")}


@pytest.mark.fault(4)
@pytest.mark.parametrize("point", points())
def test_one_rank_is_killed_in_a_save(forks: Forks, whole: Any, point: Point) -> None:
    folder, calls, expected = whole(point.layout, point.mode)
    shutil.rmtree(folder / "run")
    shutil.copytree(folder / "start", folder / "run")
    config = config_for(folder, point.layout, point.mode, 4)
    kill_at = int(point.share * calls[point.rank])
    codes = forks.run(kill_jobs.trained, [(config, kill_at if rank == point.rank else None, "") for rank in range(2)])
    assert codes[point.rank] == -signal.SIGKILL, f"it was not killed: {codes}"
    checkpoints = folder / "run" / "checkpoints"
    newest = layout.latest_checkpoint(checkpoints)
    assert newest is not None, "nothing is left to go on from"
    for path in layout.complete_checkpoints(checkpoints):
        Checkpoint(path).verify()
    assert forks.run(kill_jobs.trained, [(config, None, "")] * 2) == [0, 0], "the same command does not go on"
    assert files(folder) == expected, "it went on to another state"
    complete = layout.complete_checkpoints(checkpoints)
    assert sorted(checkpoints.iterdir()) == complete, "debris is left"
    # Killed after the last save and before its deletions, nothing is left to train, and nothing saves again.
    assert [path.name for path in complete] in (["step_000004"], ["step_000003", "step_000004"])


@pytest.mark.campaign
def test_deepspeeds_own_save_fails_there(forks: Forks, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For comparison: `latest` names a checkpoint while a slower rank has still to write its shard."""
    folder, report = tmp_path / "checkpoints", tmp_path / "said"
    codes = forks.run(kill_jobs.deepspeed_save, [(str(folder),)] * 2)
    assert codes[1] == -signal.SIGKILL, codes
    assert (folder / "latest").read_text() == "step_2", "DeepSpeed has changed: write the comparison anew"
    shards = [path.name for path in (folder / "step_2").glob("*optim_states.pt")]
    assert len(shards) == 1, f"{shards}: DeepSpeed has changed: write the comparison anew"
    forks.run(kill_jobs.deepspeed_load, [(str(folder), str(report))] * 2)
    said = [json.loads(Path(f"{report}.{rank}").read_text()) for rank in range(2)]
    assert said != ["loaded", "loaded"], "DeepSpeed has changed: write the comparison anew"
    with capsys.disabled():
        print(f"\nDeepSpeed, rank 1 killed: `latest` names step_2, of 2 shards there is 1; loading it, by rank: {said}")
