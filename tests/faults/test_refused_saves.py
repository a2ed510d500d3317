"""A disk that is full, broken, read-only or gone while a run saves: earlier checkpoints whole, one sentence on all."""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron_slw.checkpoint.format import complete_checkpoints
from megatron_slw.checkpoint.load import Checkpoint
from megatron_slw.testing import WorkerPool, tiny_config, write_tiny_dataset
from megatron_slw.train import job
from megatron_slw.train.metrics import FILE_NAME, read_metrics
from tests.faults import refusing_jobs
from tests.train.test_pretrain import PYTHON, ROOT, environment, prepare

LATER = pytest.param(True, id="later", marks=pytest.mark.fault(11))
MODES = pytest.mark.parametrize("later", [pytest.param(False, id="now"), LATER])


def config_for(folder: Path, later: bool, **changes: Any) -> Any:
    settings = {"training__train_steps": 4, "curriculum": None, "checkpoint__interval": 1, "checkpoint__keep_last": 2}
    return tiny_config(folder, **(settings | {"checkpoint__asynchronous": later} | changes))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tiny_dataset(tmp_path / "data")
    return tmp_path


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for two of the tiny model's checkpoints, but not for three."""
    path = tmp_path / "small"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1300k", "tmpfs", str(path)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"mount cannot be run: {error}")
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=False)


def verified(checkpoints: Path) -> list[str]:
    found = complete_checkpoints(checkpoints)
    for path in found:
        Checkpoint(path).verify()
    assert sorted(path.name for path in checkpoints.iterdir()) == [path.name for path in found], "debris is left"
    return [path.name for path in found]


@pytest.mark.fault(5)
@MODES
def test_a_full_disk_stops_the_run(pool: WorkerPool, folder: Path, small_disk: Path, later: bool) -> None:
    config = config_for(folder, later, checkpoint__directory=str(small_disk / "checkpoints"))
    said = pool.run(refusing_jobs.refused, 1, (config, 0, None, 0))[0]
    assert "step_000003 could not be written: No space left on device" in said, said
    assert "\n" not in said
    assert verified(small_disk / "checkpoints") == ["step_000001", "step_000002"]


@pytest.mark.fault(5)
@MODES
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("code", [errno.EIO, errno.EROFS], ids=["EIO", "EROFS"])
def test_an_error_stops_the_run_or_not(pool: WorkerPool, folder: Path, later: bool, rank: int, code: int) -> None:
    """Of one rank, in the first save; with on_error=continue the later saves are complete."""
    config = config_for(folder, later, world_size=2, zero_stage=1)
    said = pool.run(refusing_jobs.refused, 2, (config, rank, 3, code))
    assert said[0] == said[1] and f"step_000001 could not be written: {errno_text(code)}" in said[0], said
    assert verified(folder / "run" / "checkpoints") == []
    config = config_for(folder, later, world_size=2, zero_stage=1, checkpoint__on_error="continue")
    assert pool.run(refusing_jobs.refused, 2, (config, rank, 3, code)) == ["trained", "trained"]
    assert verified(folder / "run" / "checkpoints") == ["step_000003", "step_000004"]


@pytest.mark.fault(5)
@MODES
def test_a_directory_that_vanishes(pool: WorkerPool, folder: Path, later: bool) -> None:
    said = pool.run(refusing_jobs.vanished, 1, (config_for(folder, later),))[0]
    assert "step_000002 could not be written: No such file or directory" in said, said
    assert complete_checkpoints(folder / "run" / "checkpoints") == []


def errno_text(code: int) -> str:
    return {errno.EIO: "Input/output error", errno.EROFS: "Read-only file system"}[code]


@pytest.mark.fault(5)
def test_an_error_of_another_file_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """config.json, or metrics.jsonl at the start: status 1 and no traceback."""

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "run/metrics.jsonl")

    monkeypatch.setattr(job, "load_config", refuse)
    assert job.main("x.json", []) == 1
    assert capsys.readouterr().err == "[Errno 28] No space left on device: 'run/metrics.jsonl'\n"


@pytest.mark.fault(5)
def test_metrics_on_a_full_disk_wait(pool: WorkerPool, folder: Path, small_disk: Path) -> None:
    """The disk is full for some steps: no line is missing in the end."""
    changes = {"logging__directory": str(small_disk), "checkpoint__directory": str(folder / "saves")}
    config = config_for(folder, False, training__train_steps=30, checkpoint__interval=2, **changes)
    said = pool.run(refusing_jobs.fill_and_free, 1, (config, small_disk))[0]
    assert f"{FILE_NAME} could not be written (No space left on device)" in said, said
    assert "no line is missing" in said, said
    assert [record["step"] for record in read_metrics(small_disk / FILE_NAME)[0]] == list(range(1, 31))


@pytest.mark.campaign
@pytest.mark.fault(5)
def test_a_log_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    """Standard output is a full disk: trained and saved all the same, status 0."""
    prepare(tmp_path)
    command = [*PYTHON, "--ds-config", str(tmp_path / "config.json"), "--training.train_steps=6"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command, cwd=ROOT, env=environment(), stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 0, done.stderr
    assert verified(tmp_path / "run" / "checkpoints") == ["step_000006"]
