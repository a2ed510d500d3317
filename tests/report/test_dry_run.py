"""The dry run: what its JSON holds, what a person reads, and that it needs neither torch nor a traceback."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from megatron_slw.config.load import resolve
from megatron_slw.config.schema import RunConfig
from megatron_slw.report.dry_run import dry_run, main, render
from megatron_slw.slw.compile import compile_plan
from megatron_slw.slw.plan import Plan

ROOT = Path(__file__).resolve().parents[2]
TREE: dict[str, Any] = {
    "train_batch_size": 32,
    "train_micro_batch_size_per_gpu": 4,
    "zero_optimization": {"stage": 1},
    "bf16": {"enabled": True},
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-3}},
    "curriculum_learning": {
        "enabled": True,
        "curriculum_type": "seqlen",
        "min_difficulty": 64,
        "max_difficulty": 512,
        "schedule_type": "fixed_linear",
        "schedule_config": {"total_curriculum_step": 50, "difficulty_step": 8},
    },
    "megatron_slw": {
        "model": {
            "num_layers": 6,
            "hidden_size": 256,
            "num_attention_heads": 8,
            "seq_length": 512,
            "vocab_size": 1000,
        },
        "parallel": {"pipeline": 2},
        "data": {"path": "data/text_document"},
        "training": {"train_steps": 100},
        "logging": {"directory": "runs/x"},
    },
}


def report_for(**changes: Any) -> tuple[RunConfig, Plan, dict[str, Any]]:
    config = resolve(TREE | changes, 4)
    plan = compile_plan(config)
    return config, plan, dry_run(config, plan, name="small.json")


def test_report() -> None:
    config, plan, report = report_for()
    assert json.loads(json.dumps(report)) == report
    assert RunConfig.model_validate(report["configuration"]) == config
    assert Plan.from_json(report["plan"]) == plan
    assert report["layout"]["layers_per_stage"] == [3, 3] and report["layout"]["data"] == 2
    assert (report["steps"], report["tokens_trained"]) == (100, plan.tokens_trained)
    assert report["tokens_discarded"] == 100 * 32 * 512 - plan.tokens_trained > 0
    lengths = [plan.at(step).seq_len for step in range(100)]
    assert report["distinct_lengths"] == len(set(lengths))
    assert (report["shortest_length"], report["longest_length"]) == (min(lengths), 512)
    first_full = report["full_length_from_step"]
    assert lengths[first_full - 2] < 512 and set(lengths[first_full - 1 :]) == {512}
    memory = report["memory_gib_per_rank"]
    assert memory["activations_shortest"] < memory["activations_longest"] < memory["total"]
    parts = ("weights", "gradients", "optimizer", "buffers", "activations_longest")
    assert memory["total"] <= 1.3 * sum(memory[part] for part in parts)
    assert report["parameters_per_rank"] < report["parameters"]


def test_render() -> None:
    text = render(report_for()[2])
    lines = text.splitlines()
    assert lines[0] == "small.json on 4 ranks: TP 1 x PP 2 x DP 2, ZeRO 1, bf16"
    assert "6 layers x 256, 8 heads, vocabulary 1,024 (1,000 padded)" in text
    assert "64 -> 512 by 8 over 50 steps (" in text and "full length from step 50" in text
    assert re.search(r"steps 100   tokens trained 1\.\d\d M   cut off \d", text)
    assert "micro-batch  8 x 72 ... 4 x 512 tokens, 2 ... 4 per step and replica" in text
    assert "training     train_steps 100, seed 1234" in text
    assert lines[-1] == "nothing was trained."
    assert max(map(len, lines)) <= 120
    labels = [line[:13] for line in lines[1:-2] if line]
    assert all(label == " " * 13 or re.fullmatch(r"\S+( plan)? +", label) for label in labels)


def test_render_without_a_curriculum_and_with_stages() -> None:
    plain = render(report_for(curriculum_learning=None)[2])
    assert "length plan  512 throughout" in plain and "cut off" not in plain
    stages = {
        "enabled": True,
        "curriculum_type": "seqlen",
        "min_difficulty": 64,
        "max_difficulty": 512,
        "schedule_type": "fixed_discrete",
        "schedule_config": {"difficulty": [64, 512], "max_step": [10]},
    }
    assert "64 from step 1, 512 from step 11 (2 lengths)" in render(report_for(curriculum_learning=stages)[2])


def test_a_run_that_ends_in_the_warmup() -> None:
    changes = TREE["megatron_slw"] | {"training": {"train_steps": 20}}
    report = report_for(megatron_slw=changes)[2]
    assert report["full_length_from_step"] is None
    assert "full length never reached" in render(report)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "small.json"
    path.write_text(json.dumps(TREE), encoding="utf-8")
    return path


def test_main(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(str(file), [], 4, as_json=True) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 100
    assert main(str(file), ["--training.train_steps=7"], 4, as_json=False) == 0
    assert "steps 7 " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "world_size", "message"),
    [
        (["--model.num_layer=2"], 4, "Did you mean num_layers"),
        ([], 3, "3 ranks cannot hold whole replicas"),
        ([], 0, "the world size must be an integer greater than 0, not 0"),
        (["--model.vocab_size=null"], 4, "data/text_document"),
    ],
)
def test_main_says_what_is_wrong(
    file: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], world_size: int, message: str
) -> None:
    assert main(str(file), overrides, world_size, as_json=False) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and message in captured.err and captured.err.count("\n") == 1


def test_it_answers_without_torch(file: Path) -> None:
    code = (
        "import sys; from megatron_slw.report.dry_run import main; "
        f"status = main({str(file)!r}, [], 4, True); "
        "sys.exit(status or int('torch' in sys.modules or 'deepspeed' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["parameters"] > 0
