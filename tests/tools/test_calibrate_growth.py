"""tools/calibrate_growth.py: runs that are read, runs that are trained, kills, and what is refused."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from megatron_slw.growth.planner.law import Law, best_growth_loss
from megatron_slw.testing import write_tiny_dataset
from tests.tools.test_plan_growth import LARGE, SMALL, write_run
from tools import calibrate_growth, plan_growth

ROOT = Path(__file__).resolve().parents[2]
TOOL = [sys.executable, str(ROOT / "tools" / "calibrate_growth.py")]
Capture = pytest.CaptureFixture[str]
FAKE = """
import json, pathlib, sys, time
tree = json.loads(pathlib.Path(sys.argv[sys.argv.index("--ds-config") + 1]).read_text())
model, run = tree["megatron_slw"]["model"], pathlib.Path(tree["megatron_slw"]["logging"]["directory"])
here = pathlib.Path(sys.argv[1])
with (here / "starts").open("a") as file:
    file.write(f"{run.name}\\n")
if (here / "fail").exists():
    sys.exit((here / "fail").read_text())
print(f"training {run.name}", flush=True)
floor, scale = (3.3, 0.35) if model["num_layers"] == 1 else (2.9, 0.38)
sizes = {"vocab_size": 300, "ffn_hidden_size": None, "layernorm_epsilon": 1e-5}
with (run / "metrics.jsonl").open("w", buffering=1) as file:
    for step in range(1, 401):
        tokens = 128 * step
        file.write(json.dumps({"step": step, "tokens": tokens, "seq_len": 32, "loss": 9.0, "lr": min(1, step / 10),
                               "flops": tokens * 1000 * model["num_layers"]}) + "\\n")
        if step % 5 == 0:
            loss = floor + scale * (step / 200) ** -0.8
            file.write(json.dumps({"step": step, "tokens": tokens, "val_loss": loss}) + "\\n")
        while step == 200 and (here / "pause").exists():
            time.sleep(0.01)
        if model["num_layers"] > 1:
            time.sleep(0.01)
"""
"""Stands in for the trainer: curves of known laws, the larger model's slowly, so that it can be ended in time."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A dataset, a fake trainer, and the configurations of 1 and of 2 layers."""
    write_tiny_dataset(tmp_path / "data", documents=100)
    config: dict[str, Any] = {
        "train_batch_size": 4,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3}},
        "megatron_slw": {
            "model": {"num_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "seq_length": 32,
                      "vocab_size": 300, "hidden_dropout": 0.0, "attention_dropout": 0.0},
            "data": {"path": str(tmp_path / "data"), "split": "80,20,0"},
            "training": {"train_steps": 400, "lr_warmup_steps": 10, "lr_decay_style": "constant"},
            "evaluation": {"interval": 5, "samples": 4},
            "logging": {"directory": "unused", "tensorboard": False},
        },
    }  # fmt: skip
    (tmp_path / "small.json").write_text(json.dumps(config))
    config["megatron_slw"]["model"]["num_layers"] = 2
    (tmp_path / "target.json").write_text(json.dumps(config))
    (tmp_path / "fake.py").write_text(FAKE)
    return tmp_path


def arguments(folder: Path, *more: str) -> list[str]:
    launcher = shlex.join([sys.executable, str(folder / "fake.py"), str(folder)])
    given = {"small": "small.json", "target": "target.json", "output": "out"}
    return [*(f"--{name}={folder / value}" for name, value in given.items()), f"--launcher={launcher}", *more]


def write_config(folder: Path) -> None:
    """The real trainer writes config.json, which says how large the model is."""
    from megatron_slw.config.load import load_config, to_json

    for name in ("small", "target"):
        run = folder / "out" / name
        run.mkdir(parents=True, exist_ok=True)
        (run / "config.json").write_text(json.dumps(to_json(load_config(folder / f"{name}.json"))))


def test_runs_that_were_made_are_read_and_the_result_plans_another_growth(tmp_path: Path, capsys: Capture) -> None:
    small = write_run(tmp_path / "small", SMALL)
    large = write_run(tmp_path / "large", LARGE, num_layers=12)
    out = tmp_path / "out"
    assert calibrate_growth.main([f"--small={small}", f"--target={large}", f"--output={out}"]) == 0
    text = capsys.readouterr().out
    assert "training.grow_slope" in text and "grow_checkpoint.py --position" in text
    assert "for 2 x depth and 1 x width   published -0.0575 and 0.708" in text
    costs = [Law(law.floor, law.scale, law.exponent, cost) for law, cost in ((SMALL, 1.0), (LARGE, 2.0))]
    found = json.loads((out / "calibration.json").read_text())
    loss = best_growth_loss(*costs)  # the true costs are a little less than twice, for the tables
    assert found["position"]["value"] == pytest.approx(LARGE.done(loss) / SMALL.done(loss), abs=0.1)
    assert found["slope"]["low"] < found["slope"]["value"] < found["slope"]["high"]

    assert plan_growth.main([small, "--target=12x64", f"--calibration={out / 'calibration.json'}"]) == 0
    text = capsys.readouterr().out
    assert "at the calibrated slope" in text
    assert f"--position (calibrated {found['position']['value']:.3f})" in text
    assert f"{found['slope']['value']:.4f}" in text
    assert plan_growth.main([small, "--target=6x128", f"--calibration={out / 'calibration.json'}"]) == 2
    assert "is of 2 x depth and 1 x width, and no growth here is" in capsys.readouterr().err


def test_both_are_trained_the_target_no_further_than_needed(folder: Path, capsys: Capture) -> None:
    write_config(folder)
    assert calibrate_growth.main(arguments(folder)) == 0
    out = capsys.readouterr().out
    assert "training small" in out and "training target" in out and "rho" in out
    assert (folder / "starts").read_text().split() == ["small", "target"]
    lines = [json.loads(line) for line in (folder / "out/target/metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] < 400, "the target was trained to its end"
    assert calibrate_growth.main(arguments(folder)) == 0
    assert (folder / "starts").read_text().split() == ["small", "target"], "what is done is done again"


def test_a_dry_run_says_what_it_would_cost_and_writes_nothing(folder: Path, capsys: Capture) -> None:
    assert calibrate_growth.main(arguments(folder, "--dry-run")) == 0
    out = capsys.readouterr().out
    assert "small: 1 layers x 16, 400 steps" in out and "target: 2 layers x 16, 400 steps at most" in out
    assert "FLOPs" in out and not (folder / "out").exists()


def test_killed_the_same_command_waits_for_its_trainer_and_goes_on(folder: Path) -> None:
    write_config(folder)
    (folder / "pause").touch()
    tool = subprocess.Popen([*TOOL, *arguments(folder)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 240
    metrics = folder / "out/small/metrics.jsonl"
    while not metrics.exists() or '"step": 200,' not in metrics.read_text():
        assert time.monotonic() < deadline and tool.poll() is None, "it never trained"
        time.sleep(0.02)
    tool.kill()
    tool.communicate()
    (folder / "pause").unlink()
    assert calibrate_growth.main(arguments(folder)) == 0
    assert (folder / "starts").read_text().split() == ["small", "target"], "two trained in one directory"


def test_a_signal_ends_the_trainer_too(folder: Path) -> None:
    (folder / "pause").touch()
    tool = subprocess.Popen([*TOOL, *arguments(folder)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 240
    while not (folder / "starts").exists():
        assert time.monotonic() < deadline and tool.poll() is None, "it never trained"
        time.sleep(0.02)
    (child,) = Path(f"/proc/{tool.pid}/task/{tool.pid}/children").read_text().split()
    os.kill(tool.pid, signal.SIGTERM)
    out, _ = tool.communicate(timeout=240)
    assert tool.returncode == 0 and "the same command goes on" in out, out
    assert not Path(f"/proc/{child}").exists()


def test_a_run_that_fails_says_why(folder: Path, capsys: Capture) -> None:
    (folder / "fail").write_text("no memory left")
    assert calibrate_growth.main(arguments(folder)) == 1
    error = capsys.readouterr().err
    assert "small ended with status 1" in error and "no memory left" in error


WRONG: dict[str, tuple[list[str], str]] = {
    "the other way round": (["--small=target.json", "--target=small.json"], "give the small model first"),
    "another length": (["--target=long.json"], "model.seq_length of --small and --target must be the same"),
    "no validation": (["--evaluation.interval=0"], "evaluation.interval is 0"),
    "misspelt setting": (["--model.num_layer=3"], "Did you mean num_layers"),
    "no file": (["--small=none.json"], "none.json"),
    "a run that is none": (["--small=.", "--target=."], "metrics.jsonl cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_input_is_one_sentence(
    folder: Path, capsys: Capture, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    tree = json.loads((folder / "target.json").read_text())
    tree["megatron_slw"]["model"]["seq_length"] = 16
    (folder / "long.json").write_text(json.dumps(tree))
    more, message = WRONG[kind]
    assert calibrate_growth.main(arguments(folder, *more)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (folder / "starts").exists()


def test_the_runs_of_another_configuration_are_left_alone(folder: Path, capsys: Capture) -> None:
    (folder / "fail").write_text("no memory left")
    assert calibrate_growth.main(arguments(folder)) == 1
    capsys.readouterr()
    assert calibrate_growth.main(arguments(folder, "--optimizer.params.lr=2e-3")) == 2
    assert "is the run of another configuration" in capsys.readouterr().err
