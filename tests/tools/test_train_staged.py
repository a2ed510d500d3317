"""tools/train_staged.py with the trainer itself: two stages, killed in the first, gone on with to the end."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from megatron_slw.checkpoint import format as layout
from megatron_slw.checkpoint.format import complete_checkpoints
from megatron_slw.checkpoint.load import Checkpoint
from megatron_slw.testing import write_random_checkpoint, write_tiny_dataset
from megatron_slw.train.metrics import read_metrics
from megatron_slw.train.staged_file import read_stages
from tools import train_staged

ROOT = Path(__file__).resolve().parents[2]
TOOL = [sys.executable, str(ROOT / "tools" / "train_staged.py")]
POINT, LAST = 52, 60
"""The eighth validation loss after the warmup; any curve is flatter than the slope asked for."""


@pytest.fixture
def stages(tmp_path: Path) -> Path:
    """Lengths 8 to 32 over 20 steps, validated and saved every 4; a growth at the growth point."""
    write_tiny_dataset(tmp_path / "data", documents=100)
    curriculum = {
        "min_difficulty": 8, "max_difficulty": 32, "schedule_type": "fixed_linear",
        "schedule_config": {"total_curriculum_step": 20, "difficulty_step": 8},
    }  # fmt: skip
    config: dict[str, Any] = {
        "train_batch_size": 4,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3}},
        "data_efficiency": {
            "data_sampling": {
                "curriculum_learning": {"enabled": True, "curriculum_metrics": {"seqlen_truncate": curriculum}}
            }
        },
        "megatron_slw": {
            "model": {"num_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "seq_length": 32,
                      "vocab_size": 300, "hidden_dropout": 0.0, "attention_dropout": 0.0},
            "data": {"path": str(tmp_path / "data"), "split": "80,20,0"},
            "training": {"train_steps": LAST, "lr_warmup_steps": 5},
            "evaluation": {"interval": 4, "samples": 2},
            "checkpoint": {"interval": 4, "keep_last": 2},
            "logging": {"directory": "unused", "tensorboard": False},
        },
    }  # fmt: skip
    (tmp_path / "ds.json").write_text(json.dumps(config))
    tree = {
        "ds_config": "ds.json",
        "directory": str(tmp_path / "runs"),
        "stages": [
            {"until": "auto", "set": {"training.grow_slope": -9.0}},
            {"grow": {"depth": 2, "width": 2}, "set": {"optimizer.params.lr": 2e-3}},
        ],
    }
    (tmp_path / "stages.json").write_text(json.dumps(tree))
    return tmp_path / "stages.json"


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_killed_in_a_stage_the_same_command_goes_on(stages: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = stages.parent / "runs"
    tool = subprocess.Popen([*TOOL, str(stages)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 300
    while not complete_checkpoints(runs / "stage_1" / "checkpoints"):
        assert tool.poll() is None and time.monotonic() < deadline, "the first stage saved nothing"
        time.sleep(0.02)
    trainers = children(tool.pid)
    tool.kill()
    for trainer in trainers:
        os.killpg(trainer, signal.SIGKILL)
    tool.communicate()
    assert train_staged.main([str(stages), "--dry-run"]) == 0
    assert "stage_1: begun" in capsys.readouterr().out

    assert train_staged.main([str(stages)]) == 0
    out = capsys.readouterr().out
    assert f"stage 1 ended: growth point at step {POINT}" in out
    assert "1 layers x 16" in out and "2 layers x 32" in out and "verify" in out
    small, _ = read_metrics(runs / "stage_1" / "metrics.jsonl")
    large, _ = read_metrics(runs / "stage_2" / "metrics.jsonl")
    assert [record["step"] for record in small + large] == list(range(1, LAST + 1)), "steps are lost or twice"
    lengths = [record["seq_len"] for record in small + large]
    assert lengths == sorted(lengths) and lengths[0] == 8 and lengths[-1] == 32
    assert large[0]["grown_from"] == f"1 layers x 16 at step {POINT}"
    assert large[0]["loss"] == pytest.approx(small[-1]["loss"], abs=0.3), "the growth changed the model"
    checkpoint = Checkpoint(complete_checkpoints(runs / "stage_2" / "checkpoints")[-1])
    assert checkpoint.progress.step == LAST
    assert (checkpoint.config.model.num_layers, checkpoint.config.model.hidden_size) == (2, 32)
    assert (checkpoint.config.optimizer.lr, checkpoint.config.training.grow_when) == (2e-3, None)

    command = [str(stages), "--launcher", "false"]
    assert train_staged.main(command) == 0, "a run that has ended starts nothing"
    assert capsys.readouterr().out.count(": done") == 2


def at_step(stages: Path, saved: int, **until: int) -> Path:
    """The first stage as a checkpoint that nobody trained; where the second one begins."""
    tree = json.loads(stages.read_text())
    tree["stages"][0] = {"until": until} if until else {}
    tree["stages"][1]["grow"]["verify"] = False
    stages.write_text(json.dumps(tree))
    write_random_checkpoint(read_stages(stages).stages[0].config, stages.parent / "runs/stage_1/checkpoints", saved)
    return stages.parent / "runs" / "stage_2" / "checkpoints"


def test_a_stage_that_fails_is_not_grown_again(stages: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grown = at_step(stages, 8, step=8)
    assert train_staged.main([str(stages), "--launcher", "sh -c 'echo no memory; exit 1'"]) == 1
    assert "stage_2 ended with status 1: no memory" in capsys.readouterr().err
    (checkpoint,) = complete_checkpoints(grown)
    assert checkpoint.name == "step_000008"
    before = (checkpoint / "manifest.json").stat().st_mtime_ns
    assert train_staged.main([str(stages), "--launcher", "sh -c 'exit 0'"]) == 0
    assert "the same command goes on" in capsys.readouterr().out
    assert (checkpoint / "manifest.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("where", ["write_manifest", "rename_complete"])
def test_killed_in_a_growth_the_same_command_goes_on(
    stages: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """All tensors are written, or the new configuration too, but the checkpoint has not got its name."""
    grown = at_step(stages, 8, step=8)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt("killed")

    monkeypatch.setattr(layout, where, killed)
    with pytest.raises(KeyboardInterrupt):
        train_staged.main([str(stages), "--launcher", "false"])
    assert complete_checkpoints(grown) == [] and list(grown.iterdir())
    monkeypatch.undo()
    assert train_staged.main([str(stages), "--launcher", "sh -c 'exit 1'"]) == 1
    assert [path.name for path in grown.iterdir()] == ["step_000008"]


def test_a_longer_position_table_begins_the_clock_again(stages: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grown = at_step(stages, 8, step=8)
    tree = json.loads(stages.read_text())
    settings = {"curriculum.max_difficulty": 64}
    tree["stages"][1] = {"grow": {"seq_length": 64, "verify": False}, "set": settings}
    stages.write_text(json.dumps(tree))
    assert train_staged.main([str(stages), "--launcher", "sh -c 'exit 1'"]) == 1
    (checkpoint,) = complete_checkpoints(grown)
    assert checkpoint.name == "step_000000", "its own checkpoints would be older than the one it began with"
    assert Checkpoint(checkpoint).plan.total_steps == LAST - 8


def test_a_stage_with_nothing_left_to_train_is_refused(stages: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grown = at_step(stages, LAST)
    assert train_staged.main([str(stages), "--launcher", "false"]) == 2
    assert f"nothing to train: {stages.parent}/runs/stage_1" in capsys.readouterr().err
    assert not grown.exists()


def test_two_calls_at_once_are_one_too_many(stages: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (stages.parent / "runs").mkdir()
    with (stages.parent / "runs" / "staged.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert train_staged.main([str(stages), "--launcher", "false"]) == 2
    assert "in use by another call" in capsys.readouterr().err


def test_a_failure_is_told_with_the_trainer_s_last_words(stages: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_staged.main([str(stages), "--launcher", "sh -c 'echo the disk is full; exit 1'"]) == 1
    assert "stage_1 ended with status 1: the disk is full" in capsys.readouterr().err
    assert train_staged.main([str(stages), "--launcher", "sh -c 'echo no such data; exit 2'"]) == 2
    assert capsys.readouterr().err == "no such data\n"
    (stages.parent / "ds.json").unlink()
    assert train_staged.main([str(stages)]) == 2
    assert "ds.json: cannot be read" in capsys.readouterr().err
