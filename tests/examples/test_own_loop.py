"""The examples for loops of one's own run, and learn."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def main_of(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None, f"{name} is not a Python file"
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def evaluation(printed: str) -> tuple[int, float]:
    length, loss = re.findall(r"^evaluation \| len (\d+) \| loss ([\d.]+)$", printed, re.M)[0]
    return int(length), float(loss)


def test_pytorch_loop(capsys: pytest.CaptureFixture[str]) -> None:
    assert main_of("pytorch_loop")([]) == 0
    printed = capsys.readouterr().out
    steps = re.findall(r"^step (\d+)/60 \| tokens ([\d,]+) \| len (\d+) ", printed, re.M)
    assert steps[0] == ("10", "1,152", "24") and steps[-1] == ("60", "23,296", "64")
    length, loss = evaluation(printed)
    assert length == 64 and loss < 3, "bytes drawn evenly have 5.5"


def test_pytorch_loop_takes_a_whole_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    path = EXAMPLES / "quickstart" / "ds_slw.json"
    assert main_of("pytorch_loop")(["--ds-config", str(path), "--steps", "10"]) == 0
    assert "step 10/10 | tokens 2,560 | len 32 |" in capsys.readouterr().out


def test_huggingface_trainer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main_of("huggingface_trainer")(["--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert re.findall(r"'seq_len': (\d+)", printed) == ["24", "40", "64", "64", "64", "64"]
    length, loss = evaluation(printed)
    assert length == 64 and loss < 4, "bytes drawn evenly have 5.5"
