"""What a grown run goes on with: the small one's batches, its state at every kind of optimizer, growth after growth."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_slw.checkpoint.load import Checkpoint
from megatron_slw.config.load import load_config
from megatron_slw.config.schema import RunConfig
from megatron_slw.growth import stream
from megatron_slw.growth.moments import multipliers
from megatron_slw.growth.operators.width import width_of
from megatron_slw.growth.record import GrowthRecord
from megatron_slw.testing import WorkerPool, tiny_config, write_tiny_dataset
from tests.checkpoint import jobs
from tools import grow_checkpoint

ROOT = Path(__file__).resolve().parents[2]
STEP = 5
KILLED = """
import os, signal, sys
from megatron_slw.growth import stream
from tools import grow_checkpoint
split, write = stream.split_files, stream.write_file
stream.split_files = lambda shapes: split(shapes, 50_000)
def killed(path, *rest):
    if path.name.endswith("-005.safetensors"):
        path.with_name(path.name + ".part").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    return write(path, *rest)
stream.write_file = killed
grow_checkpoint.main(sys.argv[1:])
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tiny_dataset(tmp_path / "data")
    return tmp_path


def small_run(folder: Path, pool: WorkerPool, **changes: Any) -> RunConfig:
    """A configuration, trained and saved up to STEP."""
    settings: dict[str, Any] = {"training__train_steps": 30, "curriculum": None, "optimizer__lr": 3e-3} | changes
    config = tiny_config(folder, logging__directory=str(folder / "small"), **settings)
    pool.run(jobs.run, 1, (config, STEP, (STEP,)))
    return config


def checkpoint_of(run: Path) -> Path:
    return run / "checkpoints" / f"step_{STEP:06d}"


def arguments(source: Path, target: Path, *flags: str) -> list[str]:
    return ["--load", str(checkpoint_of(source)), "--save", str(checkpoint_of(target)), *flags]


def grown(source: Path, target: Path, *flags: str) -> RunConfig:
    assert grow_checkpoint.main(arguments(source, target, *flags)) == 0
    return load_config(target / "ds_config.json")


def record_of(run: Path) -> GrowthRecord:
    record = Checkpoint(checkpoint_of(run)).growth
    assert record is not None
    return record


def test_in_the_middle_of_the_warmup_the_batches_go_on(pool: WorkerPool, folder: Path) -> None:
    """Lengths and tokens of the next steps are those that the small run would have read."""
    curriculum = tiny_config(folder).curriculum
    config = small_run(folder, pool, curriculum=curriculum, training__train_steps=12)
    large = grown(folder / "small", folder / "large", "--depth", "2", "--width", "2")
    straight = pool.run(jobs.run, 1, (config, 10))[0]["tokens"]
    after = pool.run(jobs.run, 1, (large, 10))[0]["tokens"]
    assert set(after) == set(straight) == set(range(STEP, 10))
    assert len({tokens.shape for tokens in after.values()}) > 1, "the length never changed"
    assert all(np.array_equal(after[step], straight[step]) for step in straight)


def test_growth_after_growth_keeps_the_dynamics(pool: WorkerPool, folder: Path) -> None:
    """Twice as wide twice, at once and one by one: the factors multiply, the losses are the small run's."""
    config = small_run(folder, pool)
    exact = ("--width", "2", "--dynamics", "exact")
    grown(folder / "small", folder / "once", *exact, "--then", "--width", "2")
    grown(folder / "small", folder / "half", *exact)
    large = grown(folder / "half", folder / "twice", *exact)
    once, twice = record_of(folder / "once"), record_of(folder / "twice")
    assert once.multipliers == twice.multipliers
    assert once.multipliers["mlp.dense_4h_to_h.weight"].lr == 0.25
    first, second = (jobs.read_logical(checkpoint_of(folder / run)) for run in ("once", "twice"))
    assert all(np.array_equal(first[key], second[key]) for key in first)
    straight = pool.run(jobs.run, 1, (config, STEP + 10))[0]["losses"]
    after = pool.run(jobs.run, 1, (large, STEP + 10))[0]["losses"]
    assert after == pytest.approx(straight, rel=2e-6)


def test_retarget_takes_the_factors_of_an_exact_growth_away(pool: WorkerPool, folder: Path) -> None:
    """From gradients that carry a factor to plain ones: the moments go back by it."""
    config = small_run(folder, pool)
    grown(folder / "small", folder / "half", "--width", "2", "--dynamics", "exact")
    grown(folder / "half", folder / "large", "--depth", "2")
    record = record_of(folder / "large")
    assert record.multipliers == {}
    half = Checkpoint(checkpoint_of(folder / "half"))
    factors = multipliers(width_of(config.model.model_copy(), half.config.model, "staged", None, 0))
    family = "input_layernorm.bias"
    before = half.tensor(f"exp_avg/layers.0.{family}")
    after = Checkpoint(checkpoint_of(folder / "large")).tensor(f"exp_avg/layers.0.{family}")
    assert factors[family].gradient == pytest.approx(2**0.5)
    assert np.allclose(after * 2**0.5, before, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "optimizer",
    [
        {"type": "SGD", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.0},
        {"type": "SGD", "lr": 0.1, "momentum": 0.0, "weight_decay": 0.0},
        {"type": "Adam", "lr": 1e-3, "weight_decay": 0.1},
    ],
    ids=["momentum", "no state", "Adam"],
)
def test_every_optimizers_state_grows(pool: WorkerPool, folder: Path, optimizer: dict[str, Any]) -> None:
    small_run(folder, pool, optimizer=optimizer)
    large = grown(folder / "small", folder / "large", "--width", "2", "--depth", "2")
    result = pool.run(jobs.run, 1, (large, STEP + 2))[0]
    assert result["start"].step == STEP
    kinds = {key.split("/")[0] for key in result["restored"]}
    assert kinds == {key.split("/")[0] for key in jobs.read_logical(checkpoint_of(folder / "small"))}
    refused = arguments(folder / "small", folder / "exact", "--width", "2", "--dynamics", "exact")
    assert grow_checkpoint.main(refused) == 2, "exact dynamics need decoupled decay"


def test_a_larger_vocabulary_trains_on_its_own_data(pool: WorkerPool, folder: Path) -> None:
    small_run(folder, pool)
    write_tiny_dataset(folder / "more", vocab_size=500)
    flags = ("--vocab-size", "500", f"--data.path={folder / 'more'}")
    large = grown(folder / "small", folder / "large", *flags)
    assert large.model.padded_vocab_size == 512
    assert len(pool.run(jobs.run, 1, (large, STEP + 2))[0]["losses"]) == 2


def test_sigkill_in_the_middle_of_a_file(pool: WorkerPool, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_run(folder, pool)
    split = stream.split_files
    monkeypatch.setattr(stream, "split_files", lambda shapes: split(shapes, 50_000))
    flags = arguments(folder / "small", folder / "large", "--width", "2", "--workers", "1")
    died = subprocess.run([sys.executable, "-c", KILLED, *flags], cwd=ROOT, capture_output=True, timeout=300)
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    checkpoints = folder / "large" / "checkpoints"
    (left,) = checkpoints.iterdir()
    assert left.name.endswith(".writing")
    whole = {path.name: path.stat().st_mtime_ns for path in left.glob("*.safetensors")}
    assert len(whole) == 5
    assert grow_checkpoint.main(flags) == 0
    assert [path.name for path in checkpoints.iterdir()] == [f"step_{STEP:06d}"]
    again = {name: (checkpoint_of(folder / "large") / name).stat().st_mtime_ns for name in whole}
    assert again == whole, "what was whole already was written again"
    Checkpoint(checkpoint_of(folder / "large")).verify()
    grown(folder / "small", folder / "straight", "--width", "2")
    first, second = (jobs.read_logical(checkpoint_of(folder / run)) for run in ("large", "straight"))
    assert all(np.array_equal(first[key], second[key]) for key in first)
