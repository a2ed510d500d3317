"""tools/inspect_checkpoint.py: the figures of a checkpoint, and damage that only reading finds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_slw.checkpoint.load import Checkpoint
from megatron_slw.config.load import to_json
from megatron_slw.testing import tiny_config, write_random_checkpoint
from tools import inspect_checkpoint

Capture = pytest.CaptureFixture[str]
PARAMETERS = 384 * 32 + 32 * 32 + 2 * (12 * 32 * 32 + 13 * 32) + 2 * 32


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    config = tiny_config(tmp_path, data__path=f"{tmp_path}/\x1b[31mred")
    return write_random_checkpoint(config, tmp_path / "checkpoints", 5)


def test_json_is_the_whole_checkpoint(checkpoint: Path, capsys: Capture) -> None:
    assert inspect_checkpoint.main([str(checkpoint), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    read = Checkpoint(checkpoint)
    assert (found["progress"]["step"], found["total_steps"], found["optimizer_steps"]) == (5, 12, 5)
    assert found["parameters"] == PARAMETERS
    assert found["bytes_by_kind"] == dict.fromkeys(("weight", "exp_avg", "exp_avg_sq"), 4 * PARAMETERS)
    assert found["config"] == to_json(read.config)
    assert found["tensors"] == {key: list(shape) for key, shape in read.shapes.items()}
    on_disk = {path.name: path.stat().st_size for path in checkpoint.iterdir() if path.name != "manifest.json"}
    assert {name: record["size"] for name, record in found["files"].items()} == on_disk
    assert found["verified"] is False


def test_text_for_people(checkpoint: Path, capsys: Capture) -> None:
    assert inspect_checkpoint.main([str(checkpoint), "--verify"]) == 0
    said = capsys.readouterr().out
    lines = {line.split()[0]: line for line in said.splitlines() if line}
    assert "step 5 of 12, 40 samples, 576 tokens" in lines["progress"]
    assert f"{PARAMETERS:,} parameters" in said.replace("\n", " ")
    row = lines["layers.*.mlp.dense_h_to_4h.weight"]
    assert row.split()[1:6] == ["128", "x", "32", "2", "8,192"] and row.endswith("weight, exp_avg, exp_avg_sq")
    assert "verified: SHA-256 of 3 files" in lines["verified:"]
    assert "\x1b" not in said, "a setting commands the terminal"


def test_damage_is_one_sentence(checkpoint: Path, capsys: Capture) -> None:
    tensors = checkpoint / "tensors-00000-000.safetensors"
    content = bytearray(tensors.read_bytes())
    content[-1] ^= 1
    tensors.write_bytes(bytes(content))
    assert inspect_checkpoint.main([str(checkpoint)]) == 0, "sizes are right: only --verify reads"
    capsys.readouterr()
    assert inspect_checkpoint.main([str(checkpoint), "--verify"]) == 2
    said = capsys.readouterr()
    assert "SHA-256" in said.err and said.err.count("\n") == 1 and not said.out
    assert inspect_checkpoint.main([str(checkpoint.parent)]) == 2
    assert "manifest.json" in capsys.readouterr().err
