"""tools/plan_growth.py: what it prints for runs, for the law, and for what it cannot judge."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_slw.config.load import to_json
from megatron_slw.growth.planner.law import Law
from megatron_slw.testing import tiny_config
from tools import plan_growth

Capture = pytest.CaptureFixture[str]
TOKENS_A_STEP = 32_768
MODEL = {"num_layers": 6, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 500, "seq_length": 32}


def write_run(folder: Path, law: Law, steps: int = 2000, noise: float = 0.002, **model: int) -> str:
    """A run directory whose validation losses follow a law in tokens."""
    folder.mkdir()
    sizes = {f"model__{name}": value for name, value in (MODEL | model).items()}
    config = tiny_config(folder, curriculum=None, **sizes)
    (folder / "config.json").write_text(json.dumps(to_json(config)))
    generator = np.random.default_rng(len(folder.name))
    lines: list[dict[str, Any]] = []
    for step in range(10, steps + 1, 10):
        tokens = step * TOKENS_A_STEP
        rate = min(1.0, step / 100) * (1.0 - step / 4000)
        lines.append({"step": step, "tokens": tokens, "seq_len": 32, "loss": 9.0, "lr": rate})
        if step % 40 == 0:
            lines.append({"step": step, "tokens": tokens, "val_loss": law.loss(tokens) + generator.normal() * noise})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder)


SMALL = Law(3.3, 0.35 * (1000 * TOKENS_A_STEP) ** 0.8, 0.8)
LARGE = Law(2.9, 0.38 * (1000 * TOKENS_A_STEP) ** 0.8, 0.8)


def run(capsys: Capture, *arguments: str) -> dict[str, Any]:
    assert plan_growth.main([*arguments, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_two_measured_curves(tmp_path: Path, capsys: Capture) -> None:
    """The growth point, the position and the saving are those of the laws the curves were made of."""
    small = write_run(tmp_path / "small", SMALL)
    large = write_run(tmp_path / "large", LARGE, num_layers=12)
    plan = run(capsys, small, large)["plans"]["at the published slope"]
    truth = SMALL.done(SMALL.loss_at_slope(-0.0575))
    low, high = plan["lengths"][0]["low"], plan["lengths"][0]["high"]
    assert low < truth < high < 1.3 * low
    assert plan["grow_step"] == pytest.approx(truth / TOKENS_A_STEP, rel=0.1)
    loss = SMALL.loss_at_slope(-0.0575)
    assert plan["positions"][0]["value"] == pytest.approx(LARGE.done(loss) / truth, rel=0.1)
    assert plan["lengths"][1]["value"] == pytest.approx(plan["stop"]["value"] - LARGE.done(loss), rel=0.1)


def test_a_table_for_people(tmp_path: Path, capsys: Capture) -> None:
    small = write_run(tmp_path / "small", SMALL)
    assert plan_growth.main([small, "--target", "12x64", "--target", "12x128"]) == 0
    out = capsys.readouterr().out
    assert "small (6 layers x 64): 44 validation losses of steps 280 to 2,000" in out
    assert "--position (published 0.708)" in out and "--position (published 0.563)" in out
    assert "train 12 layers x 128 for steps" in out
    assert "compute saved" in out
    assert "not the error of a predicted one" in out
    assert max(map(len, out.splitlines())) < 170


def test_a_target_costs_what_the_estimate_says(tmp_path: Path, capsys: Capture) -> None:
    small = write_run(tmp_path / "small", SMALL)
    write_run(tmp_path / "large", LARGE, hidden_size=128)
    predicted = run(capsys, small, "--target", "6x128")["stages"][1]["law"]["cost"]
    measured = run(capsys, small, str(tmp_path / "large"))["stages"][1]["law"]["cost"]
    assert predicted == measured


def test_the_published_law_alone(capsys: Capture) -> None:
    plans = run(capsys, "--law", "12x384", "--target", "12x768")["plans"]
    assert plans["at the published slope"]["positions"][0]["value"] == pytest.approx(1 / 2.717, rel=1e-3)
    assert plans["where it saves most"]["losses"][0]["value"] == pytest.approx(3.501, abs=1e-3)


def test_a_point_beyond_the_curve_is_called_extrapolated(tmp_path: Path, capsys: Capture) -> None:
    small = write_run(tmp_path / "small", SMALL, steps=700, noise=0.05)
    doubts = run(capsys, small, "--target", "6x128")["doubts"]
    assert any("extrapolated" in doubt for doubt in doubts)
    assert any("not determined" in doubt for doubt in doubts)


def test_a_decayed_learning_rate_is_said(tmp_path: Path, capsys: Capture) -> None:
    small = write_run(tmp_path / "small", SMALL, steps=3500)
    assert any("% of its peak" in doubt for doubt in run(capsys, small, "--target", "6x128")["doubts"])


WRONG: dict[str, tuple[list[str], str]] = {
    "nothing": ([], "--law SIZE"),
    "one stage": (["RUN"], "two stages at least"),
    "run and law": (["RUN", "--law", "2x4", "--target", "4x4"], "one of them"),
    "smaller target": (["RUN", "--target", "2x64"], "is not larger than"),
    "no size": (["RUN", "--target", "12-64"], "is not a size"),
    "huge size": (["RUN", "--target", "12x99999999"], "is not a size"),
    "zero": (["RUN", "--target", "0x64"], "is not a size"),
    "no such run": (["RUN/none", "--target", "12x64"], "cannot be read"),
    "rising slope": (["RUN", "--target", "12x64", "--slope", "0.05"], "below 0"),
    "slopes": (["RUN", "--target", "12x64", "--slope", "-0.05", "--slope", "-0.05"], "2 times"),
    "stop": (["RUN", "--target", "12x64", "--stop-slope", "0"], "below 0"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_input_is_one_sentence(tmp_path: Path, capsys: Capture, kind: str) -> None:
    arguments, message = WRONG[kind]
    folder = write_run(tmp_path / "small", SMALL, steps=400)
    assert plan_growth.main([argument.replace("RUN", folder) for argument in arguments]) == 2
    output = capsys.readouterr()
    assert message in output.err and output.err.count("\n") == 1 and output.out == ""


def test_damaged_files_are_refused(tmp_path: Path, capsys: Capture) -> None:
    folder = Path(write_run(tmp_path / "small", SMALL, steps=400))
    for name, text, message in (
        ("config.json", "{}", "no resolved configuration"),
        ("config.json", "{", "is not JSON"),
        ("metrics.jsonl", '{"step": 1}\n' * 3, "line 1 is no metrics record"),
        ("metrics.jsonl", "", "no curve to judge yet: no step"),
    ):
        before = (folder / name).read_text()
        (folder / name).write_text(text)
        assert plan_growth.main([str(folder), "--target", "12x64"]) == 2
        assert message in capsys.readouterr().err
        (folder / name).write_text(before)


def test_a_file_without_its_run_directory_needs_flops(tmp_path: Path, capsys: Capture) -> None:
    folder = Path(write_run(tmp_path / "small", SMALL))
    (folder / "config.json").unlink()
    large = write_run(tmp_path / "large", LARGE, num_layers=12)
    assert plan_growth.main([str(folder / "metrics.jsonl"), large]) == 2
    assert "has no FLOPs" in capsys.readouterr().err
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    lines = [line if "val_loss" in line else line | {"flops": 10**5 * line["tokens"]} for line in lines]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run(capsys, str(folder / "metrics.jsonl"), large)["plans"]["where it saves most"] is not None


def test_it_needs_no_torch() -> None:
    code = (
        "import sys; from tools import plan_growth; plan_growth.main(['--law', '2x64', '--target', '4x64']); "
        "assert 'torch' not in sys.modules, 'torch is imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2], capture_output=True)
