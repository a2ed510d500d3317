"""The same model, exported, gets the same figures from lm-evaluation-harness on the same files."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from itertools import islice
from pathlib import Path

import pytest

from benchmarks import lm_eval_tasks
from megatron_slw.evaluation.wikitext import articles
from megatron_slw.testing import WorkerPool, tiny_config
from tests.evaluation.task_files import WORDS, write_task_files
from tests.train.run_jobs import train_run
from tools import evaluate, export_hf

STEPS = 150

pytestmark = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed")


def turned(number: int, words: int) -> str:
    """The same words over and over, beginning with one of them: after each there is one right word."""
    return " ".join(WORDS[(number + place) % len(WORDS)] for place in range(words))


@pytest.fixture
def files(tmp_path: Path, shared_text: Path) -> tuple[Path, Path]:
    """LAMBADA and WikiText: some real rows and articles, and rows whose words the model has been trained on."""
    with open(shared_text / "lambada_openai.jsonl") as real:
        lines = list(islice(real, 30))
    for number in range(40):
        right, wrong = (number + 9) % len(WORDS), (number + 3) % len(WORDS)
        pair = {"context": turned(number, 9), "continuation": WORDS[right if number % 3 else wrong]}
        lines.append(json.dumps(pair) + "\n")
    lambada, wikitext = tmp_path / "lambada_part.jsonl", tmp_path / "wikitext_part.txt"
    lambada.write_text("".join(lines))
    pages = articles((shared_text / "wikitext-2-test.txt").read_text())
    wikitext.write_text("".join([pages[0], pages[15]]))
    return lambada, wikitext


def ours(checkpoint: Path, task: str, data: Path, output: Path) -> dict[str, float]:
    flags = ["--load", str(checkpoint), "--task", task, "--data", str(data), "--output", str(output)]
    assert evaluate.main(flags) == 0
    return json.loads(output.read_text())


def test_lm_eval_gives_the_same_figures(pool: WorkerPool, tmp_path: Path, files: tuple[Path, Path]) -> None:
    prefix = write_task_files(tmp_path, [turned(number, 40) for number in range(60)])
    config = tiny_config(
        tmp_path, data__path=str(prefix), model__vocab_size=None, training__train_steps=STEPS, curriculum=None
    )
    pool.run(train_run, 1, (config,))
    checkpoint = tmp_path / "run" / "checkpoints" / f"step_{STEPS:06d}"
    assert export_hf.main(["--load", str(checkpoint), "--save", str(tmp_path / "exported")]) == 0
    lambada, wikitext = files
    pages = tmp_path / "pages.jsonl"
    pages.write_text("".join(json.dumps({"page": page}) + "\n" for page in articles(wikitext.read_text())))
    command = lm_eval_tasks.command(tmp_path / "exported", lambada, pages, tmp_path / "cache")
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = json.loads(done.stdout.splitlines()[-1])

    found = ours(checkpoint, "lambada", lambada, tmp_path / "lambada.json")
    assert 0 < found["accuracy"] < 1, "some are right, some are wrong"
    assert found["accuracy"] == pytest.approx(theirs["local_lambada"]["acc"], abs=1e-12)
    assert found["perplexity"] == pytest.approx(theirs["local_lambada"]["perplexity"], rel=1e-4)
    found = ours(checkpoint, "wikitext", wikitext, tmp_path / "wikitext.json")
    for name in ("word_perplexity", "bits_per_byte"):
        assert found[name] == pytest.approx(theirs["local_wikitext"][name], rel=1e-4), name
