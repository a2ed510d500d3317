"""Every configuration in examples/ dry-runs at its world size; the paper's take the paper's steps."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from megatron_slw.config import load_config
from megatron_slw.report.dry_run import dry_run, render
from megatron_slw.slw.compile import compile_plan

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PAPER_TOKENS = 157_286_400_000
WORLD_SIZES = {
    "ds_slw": 8,
    "gpt2_117m_baseline": 128,
    "gpt2_117m_slw": 128,
    "gpt2_1.5b_bsz4k_baseline": 128,
    "gpt2_1.5b_bsz4k_slw": 128,
    "gpt3_125m_slw": 64,
    "gpt_1.3b_tp4_pp8": 64,
}
STEPS = {
    "gpt2_117m_baseline": 300_000,
    "gpt2_117m_slw": 330_000,
    "gpt2_1.5b_bsz4k_baseline": 37_500,
    "gpt2_1.5b_bsz4k_slw": 58_769,
}
BILLIONS = {  # of parameters, as published
    "ds_slw": 0.124,
    "gpt2_117m_slw": 0.124,
    "gpt2_1.5b_bsz4k_slw": 1.558,
    "gpt3_125m_slw": 0.125,
    "gpt_1.3b_tp4_pp8": 1.3,
}


def report_of(name: str) -> dict[str, Any]:
    config = load_config(EXAMPLES / f"{name}.json", world_size=WORLD_SIZES[name])
    return dry_run(config, compile_plan(config), name=f"{name}.json")


def test_every_example_is_tested() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.json")} == set(WORLD_SIZES)


@pytest.mark.parametrize("name", WORLD_SIZES)
def test_dry_run(name: str) -> None:
    report = report_of(name)
    assert report["layout"]["world_size"] == WORLD_SIZES[name]
    assert report["configuration"]["model"]["vocab_size"] == 50257
    assert report["full_length_from_step"] is not None
    assert (report["distinct_lengths"] > 100) == ("baseline" not in name)
    assert 0.1 < report["memory_gib_per_rank"]["total"] < 32  # the paper's GPUs have 32 GiB
    assert f"on {WORLD_SIZES[name]} ranks" in render(report)


@pytest.mark.parametrize(("name", "steps"), STEPS.items())
def test_the_paper_s_cases_take_the_paper_s_steps(name: str, steps: int) -> None:
    report = report_of(name)
    assert report["steps"] == steps
    rows = report["configuration"]["train_batch_size"]
    assert PAPER_TOKENS <= report["tokens_trained"] < PAPER_TOKENS + rows * 1024
    assert report["configuration"]["optimizer"] | {"lr": None} == {
        "type": "AdamW",
        "lr": None,
        "betas": [0.9, 0.999],
        "eps": 1e-8,
        "weight_decay": 0.01,
        "momentum": 0.0,
    }


def test_the_paper_s_discarded_tokens() -> None:
    discarded = [report_of(name)["tokens_discarded"] / 1e9 for name in ("gpt2_117m_slw", "gpt2_1.5b_bsz4k_slw")]
    assert discarded == pytest.approx([15.7, 89.2], abs=0.05)


@pytest.mark.parametrize(("name", "billions"), BILLIONS.items())
def test_published_sizes(name: str, billions: float) -> None:
    assert report_of(name)["parameters"] / 1e9 == pytest.approx(billions, rel=0.02)


def test_the_table_of_examples_is_true() -> None:
    rows = re.findall(r"^\| `([\w.]+)\.json` \| (\d+) \|", (EXAMPLES / "README.md").read_text("utf-8"), re.M)
    assert {name: int(ranks) for name, ranks in rows} == WORLD_SIZES


def test_cluster_files() -> None:
    subprocess.run(["bash", "-n", str(EXAMPLES / "slurm.sh")], check=True)
    script = (EXAMPLES / "slurm.sh").read_text("utf-8")
    nodes, tasks = (int(re.findall(rf"--{name}=(\d+)", script)[0]) for name in ("nodes", "ntasks-per-node"))
    assert nodes * tasks == WORLD_SIZES["gpt3_125m_slw"] and "examples/gpt3_125m_slw.json" in script
    for line in (EXAMPLES / "hostfile").read_text("utf-8").splitlines():
        assert re.fullmatch(r"\S+ slots=\d+", line)
