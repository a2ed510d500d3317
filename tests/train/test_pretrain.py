"""pretrain_gpt.py as a user runs it: from the shell, stopped, killed, resumed, under three launchers, misused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deepspeed.accelerator import get_accelerator

from megatron_slw.checkpoint.format import latest_checkpoint, step_folder
from megatron_slw.checkpoint.load import Checkpoint
from megatron_slw.testing import write_tiny_dataset
from megatron_slw.train.metrics import read_metrics

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
PYTHON = [sys.executable, "pretrain_gpt.py"]
DEEPSPEED = [str(BIN / "deepspeed"), "--num_gpus", "2", "pretrain_gpt.py"]
TORCHRUN = [str(BIN / "torchrun"), "--standalone", "--nproc-per-node", "2", "pretrain_gpt.py"]
STEPS = 30


def prepare(tmp_path: Path) -> Path:
    """A dataset and a configuration, equal in every folder."""
    write_tiny_dataset(tmp_path / "data", documents=100)
    curriculum = {
        "min_difficulty": 8, "max_difficulty": 32, "schedule_type": "fixed_linear",
        "schedule_config": {"total_curriculum_step": 20, "difficulty_step": 8},
    }  # fmt: skip
    config: dict[str, Any] = {
        "train_batch_size": 8,
        "train_micro_batch_size_per_gpu": 2,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "eps": 1e-5}},
        "data_efficiency": {
            "data_sampling": {
                "curriculum_learning": {"enabled": True, "curriculum_metrics": {"seqlen_truncate": curriculum}}
            }
        },
        "megatron_slw": {
            "model": {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "seq_length": 32,
                      "vocab_size": 300, "hidden_dropout": 0.0, "attention_dropout": 0.0},
            "data": {"path": str(tmp_path / "data")},
            "training": {"train_steps": STEPS, "lr_warmup_steps": 5},
            "evaluation": {"interval": 10, "samples": 5},
            "checkpoint": {"interval": 0},
            "logging": {"directory": str(tmp_path / "run"), "tensorboard": False},
        },
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return prepare(tmp_path)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of an uninterrupted run in one process."""
    folder = prepare(tmp_path_factory.mktemp("straight"))
    temporary = folder / "temporary"
    temporary.mkdir()
    status, _, err = finish(start(PYTHON, folder, env={"TMPDIR": str(temporary)}))
    assert status == 0, err
    left = [path.name for path in temporary.iterdir() if not path.name.startswith("torchinductor_")]
    assert left == [], "the run left something in the system's folder of temporary files"
    return folder / "run"


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": ""}


def start(
    launcher: list[str], folder: Path, *overrides: str, env: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    command = [*launcher, "--ds-config", str(folder / "config.json"), *overrides]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment() | dict(env or {}),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def wait_for(process: subprocess.Popen[str], text: str) -> None:
    """Read the output up to a line with `text`: the log must be written as it happens."""
    assert process.stdout is not None, "no pipe"
    for line in process.stdout:
        if text in line:
            return
    pytest.fail(f"the run ended without {text!r}: {finish(process)}")


def last_checkpoint(run: Path) -> Path:
    return step_folder(run / "checkpoints", STEPS)


def check_equal(first: Path, second: Path, rtol: float) -> None:
    """The two checkpoints hold the same tensors."""
    one, other = Checkpoint(first), Checkpoint(second)
    assert one.progress == other.progress and one.blocks.keys() == other.blocks.keys(), "not the same state"
    for key in one.blocks:
        a, b = one.tensor(key).numpy(), other.tensor(key).numpy()
        assert np.abs(a - b).max() <= rtol * np.abs(b).max(), f"{key} differs by {np.abs(a - b).max()}"


def check_metrics(run: Path, straight: Path, rtol: float) -> None:
    """Each step stands once in metrics.jsonl, with the loss of the uninterrupted run."""
    steps, evaluations = read_metrics(run / "metrics.jsonl")
    expected, expected_evaluations = read_metrics(straight / "metrics.jsonl")
    assert [s["step"] for s in steps] == list(range(1, STEPS + 1)), "a step is missing or twice"
    assert [s["seq_len"] for s in steps] == [s["seq_len"] for s in expected]
    assert [s["loss"] for s in steps] == pytest.approx([s["loss"] for s in expected], rel=rtol, abs=0)
    for name in ("tokens_discarded", "flops", "loss_ratio_count"):
        assert [s[name] for s in steps] == [s[name] for s in expected], name
    for name in ("loss_ratio", "spike_score", "variance_sqrt_l1", "variance_sqrt_abs_max"):
        found = [s[name] for s in steps]
        assert found == pytest.approx([s[name] for s in expected], rel=100 * rtol, abs=0), name
    losses = [e["val_loss"] for e in evaluations]
    assert losses == pytest.approx([e["val_loss"] for e in expected_evaluations], rel=rtol, abs=0)
    assert len(losses) == 3, "an evaluation is missing"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_saves_and_the_same_command_goes_on(straight: Path, folder: Path, number: signal.Signals) -> None:
    process = start(PYTHON, folder)
    wait_for(process, "step 7/")
    process.send_signal(number)
    status, out, err = finish(process)
    assert status == 0, err
    assert f"stopped by {number.name}" in out and "the same command goes on" in out, out
    stopped = latest_checkpoint(folder / "run" / "checkpoints")
    assert stopped is not None and 7 <= Checkpoint(stopped).progress.step < STEPS, "saved late or not at all"
    status, out, err = finish(start(PYTHON, folder))
    assert status == 0, err
    check_equal(last_checkpoint(folder / "run"), last_checkpoint(straight), rtol=0)
    check_metrics(folder / "run", straight, rtol=1e-12)


def test_stop_after_leaves_plan_and_learning_rate_those_of_the_whole_run(straight: Path, folder: Path) -> None:
    status, out, err = finish(start(PYTHON, folder, "--stop-after", "10"))
    assert status == 0 and f"stopped after step 10 of {STEPS}" in out, (out, err)
    stopped = latest_checkpoint(folder / "run" / "checkpoints")
    assert stopped is not None and Checkpoint(stopped).progress.step == 10, "not saved where it stopped"
    status, out, err = finish(start(PYTHON, folder, "--stop-after", "10"))
    assert status == 0 and "step 11/" not in out, "it went on although it had come to the step"
    status, _, err = finish(start(PYTHON, folder))
    assert status == 0, err
    check_equal(last_checkpoint(folder / "run"), last_checkpoint(straight), rtol=0)
    check_metrics(folder / "run", straight, rtol=1e-12)


def test_going_back_needs_the_later_checkpoints_out_of_the_way(straight: Path, folder: Path) -> None:
    """Trained on from an earlier one, the next start would take the newest, of the steps that were given up."""
    every_ten = "--checkpoint.interval=10"
    status, _, err = finish(start(PYTHON, folder, every_ten))
    assert status == 0, err
    checkpoints = folder / "run" / "checkpoints"
    earlier, newest = step_folder(checkpoints, 20), step_folder(checkpoints, STEPS)
    status, out, err = finish(start(PYTHON, folder, f"--checkpoint.load={earlier}"))
    assert (status, out) == (2, "") and f"come to {newest.name}: to go back, move the later ones" in err, err
    shutil.move(newest, folder / newest.name)
    status, out, err = finish(start(PYTHON, folder))
    assert status == 0 and "step 21/" in out and latest_checkpoint(checkpoints) == newest, err
    check_metrics(folder / "run", straight, rtol=1e-12)


def test_kill_9_loses_nothing_but_the_steps_since_the_last_save(straight: Path, folder: Path) -> None:
    for line in ("step 8/", "step 17/"):
        process = start(PYTHON, folder, "--checkpoint.interval=5")
        wait_for(process, line)
        process.kill()
        finish(process)
    status, out, err = finish(start(PYTHON, folder, "--checkpoint.interval=5", "--checkpoint.keep_last=2"))
    assert status == 0 and "step 16/" in out, (out, err)
    assert "step 14/" not in out, "it began before the last checkpoint"
    check_equal(last_checkpoint(folder / "run"), last_checkpoint(straight), rtol=0)
    check_metrics(folder / "run", straight, rtol=1e-12)
    kept = sorted(p.name for p in (folder / "run" / "checkpoints").iterdir())
    assert kept == ["step_000025", "step_000030"], kept


def test_deepspeed_saves_on_sigterm_and_torchrun_goes_on(straight: Path, folder: Path) -> None:
    """Two ranks under the deepspeed launcher, stopped; ended under torchrun: the run of one process."""
    process = start(DEEPSPEED, folder)
    wait_for(process, "step 1/")
    ranks = rank_pids(folder)
    assert len(ranks) == 2, f"not two ranks: {ranks}"
    # To the whole group, as Slurm and a terminal do: the `deepspeed` command itself dies of SIGTERM and tells nobody.
    os.killpg(process.pid, signal.SIGTERM)
    finish(process)
    assert rank_pids(folder) == [], "a rank outlived its launcher"
    stopped = latest_checkpoint(folder / "run" / "checkpoints")
    assert stopped is not None and 1 <= Checkpoint(stopped).progress.step < STEPS, "saved late or not at all"
    status, out, err = finish(start(TORCHRUN, folder))
    assert status == 0, err
    check_equal(last_checkpoint(folder / "run"), last_checkpoint(straight), rtol=1e-4)
    check_metrics(folder / "run", straight, rtol=1e-5)


def rank_pids(folder: Path) -> list[int]:
    """Processes that train with this test's configuration."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"--ds-config" in words and str(folder / "config.json").encode() in words and b"--local_rank" in b"".join(
            words
        ) and b"deepspeed.launcher.launch" not in words:
            found.append(int(entry.name))
    return found


BAD: dict[str, tuple[list[str], str]] = {
    "missing dataset": (["--data.path=nowhere/text"], r"nowhere/text"),
    "vocabulary too small": (["--model.vocab_size=100"], "vocab_size"),
    "impossible layout": (["--parallel.tensor=3"], "parallel.tensor 3"),
    "misspelt setting": (["--model.num_layer=3"], "Did you mean num_layers"),
    "checkpoint that is none": (["--checkpoint.load=nowhere/step_000001"], "nowhere/step_000001 is not a directory"),
    "dataset shorter than a window": (["--model.seq_length=4096", "--curriculum.max_difficulty=4096"], "4,097"),
    "fp16 on a machine without": (["--fp16.enabled=true", "--zero_optimization.stage=1"], "fp16"),
}


@pytest.mark.parametrize("kind", BAD)
def test_wrong_input_is_one_sentence_and_status_2(folder: Path, kind: str) -> None:
    if kind.startswith("fp16") and get_accelerator().is_fp16_supported():
        pytest.skip("this machine computes in fp16")
    overrides, message = BAD[kind]
    status, out, err = finish(start(PYTHON, folder, *overrides))
    assert status == 2, err
    assert message in err and len(err.strip().splitlines()) == 1, err
    assert out == "", "something was printed before the refusal"
    assert not (folder / "run").exists(), "something was written before the refusal"


def test_only_one_rank_complains(folder: Path) -> None:
    status, out, err = finish(start(TORCHRUN, folder, "--model.vocab_size=100"))
    assert status != 0, "the launcher hides the failure"
    assert err.count("vocab_size") == 1, err
    assert "pretrain_gpt.py\", line" not in err, "a traceback of ours"


def test_a_resume_under_another_schedule_or_on_other_data_is_refused(folder: Path) -> None:
    status, _, err = finish(start(PYTHON, folder, "--training.train_steps=8"))
    assert status == 0, err
    for overrides, message in (
        (["--curriculum.min_difficulty=16"], "Keep the batch size and the schedule"),
        (["--training.train_steps=6"], "this run ends after 6"),
        (["--model.num_layers=3"], "layers.2"),
    ):
        status, _, err = finish(start(PYTHON, folder, *overrides))
        assert status == 2 and message in err and len(err.strip().splitlines()) == 1, (overrides, err)
    write_tiny_dataset(folder / "data", documents=100, seed=5)
    status, _, err = finish(start(PYTHON, folder))
    assert status == 2 and "dataset" in err, err
