"""The tools that write files, killed or refused by the disk at any point: nothing half-made, the same command goes on.

A point is a share of the file-system calls that the command makes under its output; a write is cut in its middle.
"""

from __future__ import annotations

import errno
import importlib
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_slw.checkpoint import format as layout
from megatron_slw.checkpoint.load import Checkpoint
from megatron_slw.config.write import to_tree
from megatron_slw.testing import tiny_config, write_random_checkpoint, write_tiny_dataset
from tests.data.text_files import TEXTS, small_tokenizer, write_jsonl
from tests.faults import kill_jobs
from tests.faults.killing import Forks, counted, failing

STEP = "step_000004"
Files = dict[str, bytes]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, a text with its tokenizer, a Hugging Face folder, a run's settings."""
    folder = tmp_path_factory.mktemp("inputs")
    write_tiny_dataset(folder / "data")
    config = tiny_config(folder, curriculum=None)
    checkpoint = write_random_checkpoint(config, folder / "run" / "checkpoints", 4)
    small_tokenizer(folder)
    write_jsonl(folder / "text.jsonl", TEXTS * 20)
    (folder / "base.json").write_text(json.dumps(to_tree(config)))
    assert tool("export_hf", "--load", checkpoint, "--save", folder / "gpt2", "--no-tokenizer") == 0
    return folder


def tool(name: str, *argv: Any) -> int:
    return int(importlib.import_module(f"tools.{name}").main([str(part) for part in argv]))


def commands(inputs: Path, out: Path) -> dict[str, tuple[str, list[str], Path]]:
    """By name: the tool, its flags, and the folder or file that its result is."""
    load = inputs / "run" / "checkpoints" / STEP
    text = ["--input", inputs / "text.jsonl", "--output-prefix", out / "text", "--tokenizer-type"]
    text += ["HuggingFaceTokenizer", "--tokenizer-model", inputs / "tokenizer.json"]
    save, base = out / "checkpoints" / "step_000000", inputs / "base.json"
    found = {
        "grow": ("grow_checkpoint", ["--load", load, "--save", out / "checkpoints" / STEP, "--depth", 2], STEP),
        "export_hf": ("export_hf", ["--load", load, "--save", out / "hf", "--no-tokenizer"], "hf"),
        "import_hf": ("import_hf", ["--load", inputs / "gpt2", "--save", save, "--ds-config", base], "step_000000"),
        "export_deepspeed": ("export_deepspeed", ["--load", load, "--save", out / "universal"], "universal"),
        "preprocess": ("preprocess_data", text, "text_text_document.idx"),
    }
    where = {"grow": out / "checkpoints", "import_hf": out / "checkpoints"}
    return {
        name: (program, [str(part) for part in argv], where.get(name, out) / result)
        for name, (program, argv, result) in found.items()
    }


NAMES = ("grow", "export_hf", "import_hf", "export_deepspeed", "preprocess")
QUICK = ("grow", "export_hf")


@pytest.fixture(scope="module")
def whole(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[int, Files]]:
    """By name: the calls of an undisturbed command, and what it leaves."""
    known: dict[str, tuple[int, Files]] = {}

    def made(name: str) -> tuple[int, Files]:
        if name not in known:
            out = tmp_path_factory.mktemp(name)
            program, argv, _ = commands(inputs, out)[name]
            with counted(under=out) as calls:
                assert tool(program, *argv) == 0
            known[name] = calls[0], contents(out)
        return known[name]

    return made


def contents(out: Path) -> Files:
    """Every file, by its path; a run directory stands in the settings and is cut out of them."""
    return {
        str(path.relative_to(out)): path.read_bytes().replace(str(out).encode(), b"OUT")
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name != layout.MANIFEST  # it has the SHA-256 of state.json, with the directory
    }


def check_left(out: Path, result: Path) -> None:
    """What has the name of a result is whole."""
    for path in layout.complete_checkpoints(out / "checkpoints"):
        Checkpoint(path).verify()
    if result.name == "hf" and result.exists():
        assert (result / "config.json").exists() and (result / "model.safetensors").exists(), "half an export"


def points(shares: int) -> list[Any]:
    found = [(name, (i + 0.5) / shares) for name in NAMES for i in range(shares)]
    return [
        pytest.param(
            name, share, id=f"{name}-{share:.3f}",
            marks=() if name in QUICK and i % shares == shares // 2 else pytest.mark.campaign,
        )
        for i, (name, share) in enumerate(found)
    ]  # fmt: skip


@pytest.mark.fault(4)
@pytest.mark.parametrize(("name", "share"), points(8))
def test_killed(inputs: Path, whole: Any, tmp_path: Path, name: str, share: float) -> None:
    calls, expected = whole(name)
    program, argv, result = commands(inputs, tmp_path)[name]
    codes = Forks().run(kill_jobs.tool, [(program, argv, str(tmp_path), int(share * calls))])
    assert codes == [-signal.SIGKILL]
    check_left(tmp_path, result)
    again = tool(program, *argv)
    assert again == 0 or result.is_dir(), "the same command does not go on"  # it may be there already
    assert contents(tmp_path) == expected


@pytest.mark.fault(5)
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS], ids=lambda code: errno.errorcode[code])
@pytest.mark.parametrize(("name", "share"), points(4))
def test_refused_by_the_disk(
    inputs: Path, whole: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, share: float, code: int
) -> None:
    """One sentence, the documented status, and the same command goes on when the disk is well again."""
    calls, expected = whole(name)
    program, argv, result = commands(inputs, tmp_path)[name]
    capsys.readouterr()
    with counted(int(share * calls), failing(code), under=tmp_path):
        status = tool(program, *argv)
    said = capsys.readouterr().err
    assert "Traceback" not in said
    check_left(tmp_path, result)
    if status == 0:  # it was a deletion of temporary files, or a second name that it does without
        assert result.exists()
        return
    assert status in (1, 2) and any(word in said for word in ("No space", "Input/output", "Read-only")), said
    again = tool(program, *argv)
    assert again == 0 or result.is_dir(), "the same command does not go on"
    assert contents(tmp_path) == expected
