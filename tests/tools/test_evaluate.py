"""tools/evaluate.py: the same figures on every layout, a file of them, and wrong input in one sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_slw.config.schema import ParallelConfig, TaskConfig
from megatron_slw.data.indexed import IndexedDataset
from megatron_slw.evaluation.job import Request
from megatron_slw.testing import WorkerPool, tiny_config, write_random_checkpoint
from tests.evaluation.scoring_jobs import evaluate_on_rank
from tests.evaluation.task_files import write_task_files
from tools import evaluate

TASKS = {"wikitext": "wikitext.txt", "lambada": "lambada.jsonl", "text": "text.jsonl"}
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a model with random weights; the files of each task lie two folders above."""
    folder = tmp_path_factory.mktemp("evaluate")
    prefix = write_task_files(folder)
    sidecar = IndexedDataset(prefix).sidecar
    assert sidecar is not None and sidecar.tokenizer is not None, "no tokenizer"
    config = tiny_config(folder, data__path=str(prefix), model__vocab_size=sidecar.tokenizer.vocab_size)
    return write_random_checkpoint(config, folder / "checkpoints", 5, kinds=("weight",))


def flags(checkpoint: Path, task: str, *more: str) -> list[str]:
    return ["--load", str(checkpoint), "--task", task, "--data", str(checkpoint.parents[1] / TASKS[task]), *more]


def figures(checkpoint: Path, capsys: Capture, task: str, *more: str) -> dict[str, Any]:
    assert evaluate.main([*flags(checkpoint, task, *more), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(("tensor", "pipeline"), [(2, 1), (1, 2), (1, 1)], ids=["tp2", "pp2", "dp2"])
def test_layouts_agree(
    pool: WorkerPool, checkpoint: Path, capsys: Capture, task: str, tensor: int, pipeline: int
) -> None:
    alone = figures(checkpoint, capsys, task)
    settings = TaskConfig(task=task, data=str(checkpoint.parents[1] / TASKS[task]))  # type: ignore[arg-type]
    request = Request(str(checkpoint), settings, ParallelConfig(tensor=tensor, pipeline=pipeline))
    for found in pool.run(evaluate_on_rank, 2, (request,)):
        exact = tensor == 1
        for name, value in alone.items():
            assert found[name] == (pytest.approx(value, rel=1e-5) if isinstance(value, float) and not exact else value)


def test_a_launcher_starts_it(checkpoint: Path, capsys: Capture) -> None:
    """The last stage has the figures, the first rank prints them, once."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, evaluate.__file__, *flags(checkpoint, "lambada"), "--pipeline", "2", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == figures(checkpoint, capsys, "lambada")


def test_bf16_is_near(checkpoint: Path, capsys: Capture) -> None:
    one, other = (figures(checkpoint, capsys, "wikitext", "--precision", name) for name in ("fp32", "bf16"))
    assert other["loss"] == pytest.approx(one["loss"], rel=1e-2) and other["loss"] != one["loss"]


def test_figures_for_people_and_a_file_of_them(checkpoint: Path, capsys: Capture, tmp_path: Path) -> None:
    path = tmp_path / "run" / "evaluation" / "wiki.json"
    assert evaluate.main([*flags(checkpoint, "wikitext", "--output", str(path), "--stride", "7", "--rows", "1")]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["articles"] == "2" and lines["checkpoint"] == "step_000005"
    found = json.loads(path.read_text())
    assert f"{found['word_perplexity']:,.4f}" == lines["word_perplexity"]
    assert found == figures(checkpoint, capsys, "wikitext", "--stride", "7"), "the batch does not matter"
    assert [child.name for child in path.parent.iterdir()] == ["wiki.json"]


def broken(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path, Path], Path]:
    """A copy of the checkpoint with one file changed."""

    def make(checkpoint: Path, folder: Path) -> Path:
        copy = folder / checkpoint.name
        copy.mkdir()
        for path in checkpoint.iterdir():
            content = path.read_bytes()
            (copy / path.name).write_bytes(change(content) if path.name.endswith(name) else content)
        return copy

    return make


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda checkpoint, folder: folder / "none", "is not a directory"),
        (lambda checkpoint, folder: checkpoint.parent, "manifest.json"),
        (broken(".safetensors", lambda content: content[:-8]), ".safetensors"),
        (broken(".safetensors", lambda content: content[:-1] + b"\x07"), "SHA-256"),
        (broken("state.json", lambda content: content[: len(content) // 2]), "state.json"),
    ],
    ids=["missing", "the folder above", "cut short", "a flipped byte", "half of its state"],
)
def test_wrong_checkpoints(
    checkpoint: Path, tmp_path: Path, capsys: Capture, make: Callable[[Path, Path], Path], message: str
) -> None:
    data = str(checkpoint.parents[1] / "text.jsonl")
    assert evaluate.main(["--load", str(make(checkpoint, tmp_path)), "--data", data]) == 2
    output = capsys.readouterr()
    assert message in output.err and output.err.count("\n") == 1 and output.out == ""


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--data", "none.jsonl"], "none.jsonl does not exist"),
        (["--json-key", "body"], 'has no key "body"'),
        (["--task", "lambada"], 'line 1 has no word after a context'),
        (["--stride", "33"], "stride 33 is more than the model's length 32"),
        (["--dataset", "none"], "--dataset"),
        (["--tokenizer-dir", "/none"], "--tokenizer-dir"),
        (["--tensor", "2"], "1 ranks cannot hold whole replicas"),
        (["--device", "cuda:99"], "--device cuda:99"),
        (["--output", "/proc/none/x.json"], "--output /proc/none/x.json cannot be written"),
    ],
)
def test_refusals_are_one_line_and_status_2(
    checkpoint: Path, capsys: Capture, tmp_path: Path, more: list[str], message: str
) -> None:
    if more == ["--task", "lambada"]:
        (tmp_path / "x.jsonl").write_text('{"text": "one"}\n')
        more += ["--data", str(tmp_path / "x.jsonl")]
    assert evaluate.main([*flags(checkpoint, "text"), *more]) == 2
    output = capsys.readouterr()
    assert message in output.err and output.err.count("\n") == 1 and output.out == ""


def test_another_models_tokenizer_is_refused(checkpoint: Path, tmp_path: Path, capsys: Capture) -> None:
    """Of as many ids, from another text; and of more ids than the model knows."""
    folder = checkpoint.parents[1]
    config = tiny_config(folder, data__path=str(folder / "data_text_document"), model__vocab_size=100)
    small = write_random_checkpoint(config, tmp_path, 5, kinds=("weight",))
    assert evaluate.main(flags(checkpoint, "text", "--load", str(small))) == 2
    assert "was trained with another tokenizer, of 100" in capsys.readouterr().err
