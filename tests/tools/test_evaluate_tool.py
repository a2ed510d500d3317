"""The two tools over a model with random weights: figures, flags, refusals."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from megatron_slw.checkpoint import inference
from megatron_slw.data.preprocess import PreprocessSettings, preprocess
from megatron_slw.data.tokenizer import TokenizerSpec
from megatron_slw.data.tokenizer_training import train_byte_level_bpe
from megatron_slw.model.gpt import GPT
from megatron_slw.parallel.groups import one_process_groups
from megatron_slw.progress import Progress
from megatron_slw.testing import tiny_config
from tools import evaluate

TEXTS = ["def f(x):\n    return x\n", "é import os", "class A: pass"]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A JSONL; `--load any` gives a model that finds every token equally likely."""
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    info = train_byte_level_bpe([str(path)], str(tmp_path / "tokenizer.json"), 280, ["text"])
    spec = TokenizerSpec("HuggingFaceTokenizer", tokenizer_model=str(tmp_path / "tokenizer.json"))
    preprocess(PreprocessSettings((str(path),), str(tmp_path / "data"), spec, append_eod=True))
    prefix = f"{tmp_path}/data_text_document"
    config = tiny_config(tmp_path, data__path=prefix, model__vocab_size=info.vocab_size)
    model = GPT(config, one_process_groups()).eval()
    for param in model.parameters():
        param.requires_grad_(False).zero_()
    loaded = SimpleNamespace(model=model, config=config, progress=Progress(7, 56, 900))
    monkeypatch.setattr(inference, "load_model", lambda *_: loaded)
    return path


Capture = pytest.CaptureFixture[str]


def test_figures_of_a_model_that_knows_nothing(data: Path, capsys: Capture) -> None:
    assert evaluate.main(["--load", "any", "--data", str(data), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    size = len("".join(TEXTS).encode())
    assert (found["step"], found["documents"], found["bytes"]) == (7, 3, size)
    vocab = round(math.exp(found["loss"]))
    assert 257 <= vocab <= 280
    assert found["perplexity"] == pytest.approx(vocab, rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(found["tokens"] * math.log2(vocab) / size, rel=1e-5)


def test_figures_for_people(data: Path, capsys: Capture) -> None:
    assert evaluate.main(["--load", "any", "--data", str(data), "--overlap", "8"]) == 0
    lines = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert lines["documents"] == "3"
    assert float(lines["bits_per_byte"]) > 1


@pytest.mark.parametrize(
    ("tool", "flags", "message"),
    [
        (evaluate.main, ["--data", "DATA", "--overlap", "32"], "--overlap must be"),
        (evaluate.main, ["--data", "none.jsonl"], "does not exist"),
        (evaluate.main, ["--data", "DATA", "--json-key", "body"], 'no key "body"'),
        (evaluate.main, ["--data", "DATA", "--dataset", "none"], "--dataset"),
    ],
)
def test_refusals_are_one_line_and_status_2(
    data: Path, capsys: Capture, tool: Callable[[list[str]], int], flags: list[str], message: str
) -> None:
    assert tool(["--load", "any", *(str(data) if flag == "DATA" else flag for flag in flags)]) == 2
    output = capsys.readouterr()
    assert message in output.err and output.err.count("\n") == 1 and output.out == ""
