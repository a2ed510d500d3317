"""The GPU benchmarks, small and on whatever is here: a lent machine's minutes are no place to find a typing error."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BARE = "import sys\nfor name in ('deepspeed', 'pydantic', 'pydantic_core'): sys.modules[name] = None\n"


def run(code: str) -> str:
    """What a new process prints that begins like `python benchmarks/gpu/...` in any folder."""
    start = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n"
    result = subprocess.run([sys.executable, "-c", start + code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def test_every_operator_is_checked_and_timed(tmp_path: Path) -> None:
    path = tmp_path / "kernels.json"
    run(f"from benchmarks.gpu import kernels\nkernels.main(['--tiny', '--dtype', 'float32', '--json', {str(path)!r}])")
    rows = json.loads(path.read_text())["rows"]
    lengths = {row["size"].rpartition(" ")[2] for row in rows if row["operator"].startswith("causal_softmax")}
    widths = {row["size"].rpartition(" ")[2] for row in rows if row["operator"].startswith("layer_norm")}
    assert {"8", "16", "1024", "4096"} <= lengths and {"768", "1600", "8192"} <= widths
    assert all(0.0 < row["error"] < 1e-4 for row in rows), "an operator was not compared with fp64"
    assert all({"ours", "copy"} <= row["of_copy"].keys() for row in rows)


@pytest.mark.parametrize("bare", [True, False], ids=["bare", "installed"])
def test_a_training_step_runs_also_without_pydantic_and_deepspeed(tmp_path: Path, bare: bool) -> None:
    path = tmp_path / "train.json"
    run(f"{BARE if bare else ''}from benchmarks.gpu import train\ntrain.main(['--tiny', '--json', {str(path)!r}])")
    result = json.loads(path.read_text())
    assert result["machine"]["stand_ins"] == (["pydantic", "deepspeed"] if bare else [])
    rows = result["rows"]
    assert {(row["attention"], row["length"]) for row in rows} == {
        (attention, length) for attention in ("sdpa", "fused_softmax") for length in (8, 16)
    }
    assert {row["cross_entropy"] for row in rows} == {"auto", "logits", "chunked"}
    assert all(0.0 < row["tokens_per_s"] for row in rows)
    assert all(5.0 < row["loss"] < 7.0 for row in rows), "random tokens of 300 cost log 300 = 5.7"
