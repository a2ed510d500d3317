"""tools/generate.py as a person uses it: a prompt, a file, a conversation, Ctrl-C, refusals."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from megatron_slw.data.preprocess import PreprocessSettings, preprocess
from megatron_slw.data.tokenizer import TokenizerSpec
from megatron_slw.data.tokenizer_training import train_byte_level_bpe
from megatron_slw.evaluation import prompts as show
from megatron_slw.testing import tiny_config, write_random_checkpoint
from tools import generate

ROOT = Path(__file__).resolve().parents[2]
TEXTS = ["def f(x):\n    return x\n", "é import os", "class A: pass"]
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of random weights under `checkpoints`, its dataset and tokenizer."""
    folder = tmp_path_factory.mktemp("generate")
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    info = train_byte_level_bpe([str(folder / "text.jsonl")], str(folder / "tokenizer.json"), 280, ["text"])
    spec = TokenizerSpec("HuggingFaceTokenizer", tokenizer_model=str(folder / "tokenizer.json"))
    preprocess(PreprocessSettings((str(folder / "text.jsonl"),), str(folder / "data"), spec, append_eod=True))
    for prefix, size in (("", info.vocab_size), ("small", 100)):
        config = tiny_config(folder, data__path=f"{folder}/data_text_document", model__vocab_size=size)
        write_random_checkpoint(config, folder / f"{prefix}checkpoints", 3, kinds=("weight",))
    return folder


def run(folder: Path, *flags: str, load: str = "checkpoints") -> int:
    return generate.main(["--load", str(folder / load / "step_000003"), "--tokens", "40", *flags])


def test_a_prompt_is_gone_on_from_and_a_seed_repeats(folder: Path, capsys: Capture) -> None:
    outputs = []
    for flags in ([], [], ["--seed", "5"], ["--no-cache"]):
        assert run(folder, "--prompt", "def é", "--samples", "2", *flags) == 0
        outputs.append(capsys.readouterr().out)
    first, second = outputs[0].split(show.RULE)
    assert first.startswith("def é") and second.startswith("def é") and first != second
    assert outputs[1] == outputs[0] == outputs[3] != outputs[2]


def test_a_file_is_a_prompt_and_one_too_long_is_told(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "prompt.txt").write_text("def f(x):\n    return x\n" * 10)
    assert run(folder, "--prompt-file", str(tmp_path / "prompt.txt")) == 0
    output = capsys.readouterr()
    assert output.out.startswith("def f(x):\n    return x\n" * 10)
    assert "longer than the model's 32 tokens" in output.err and output.err.count("\n") == 1


def test_many_prompts_give_the_same_texts_in_any_batch(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    prompts = ["def", "class A", "é", "import os and x", "x"]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt, "id": 1}) + "\n" for prompt in prompts))
    found = []
    for batch in ("2", "8"):
        assert run(folder, "--prompts", str(path), "--json", "--batch", batch, "--seed", "7") == 0
        output = capsys.readouterr()
        found.append([json.loads(line) for line in output.out.splitlines()])
        assert "5/5 prompts" in output.err
    assert found[0] == found[1] and [text["prompt"] for text in found[0]] == prompts
    assert run(folder, "--prompt", "class A", "--seed", "8") == 0
    assert capsys.readouterr().out == "class A" + found[0][1]["text"] + "\n", "not the text of its seed"
    (tmp_path / "prompts.txt").write_text("\n".join([*prompts, "", ""]))
    assert run(folder, "--prompts", str(tmp_path / "prompts.txt"), "--seed", "7") == 0
    texts = capsys.readouterr().out.split(show.RULE)
    assert texts == [made["prompt"] + made["text"] + "\n" for made in found[0]]


def test_a_conversation_ends_with_its_input(folder: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("def\nclass\n"))
    assert run(folder, "--interactive") == 0
    out = capsys.readouterr().out
    assert out.startswith("> ") and out.count("> ") >= 3 and out.endswith("\n")


def test_ctrl_c_in_a_conversation_ends_the_text_alone() -> None:
    class Interrupted:
        calls: list[str] = []

        def unseen(self, prompt: str) -> int:
            return 0

        def stream(self, prompts: list[str], *_: Any) -> Any:
            self.calls += prompts
            yield 0, "some"
            if len(self.calls) == 1:
                raise KeyboardInterrupt
            yield 0, " more"

    out = io.StringIO()
    show.interactive(Interrupted(), 9, [show.Sampling()], io.StringIO("a\nb\n"), out)  # type: ignore[arg-type]
    assert out.getvalue() == "> some\n> some more\n> \n"


def test_ctrl_c_leaves_without_a_traceback(folder: Path) -> None:
    """While a text is written: what is there stands, and the status says that it was interrupted."""
    # Random weights end a text after some hundred tokens, so there must be many texts.
    flags = ["--load", str(folder / "checkpoints" / "step_000003"), "--tokens", "1000000", "--samples", "10000"]
    flags += ["--prompt", "def"]
    process = subprocess.Popen(
        [sys.executable, "tools/generate.py", *flags], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.read(20).startswith(b"def"), "nothing was streamed"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (130, b"") and out.endswith(b"\n")


BAD = {
    "temperature": (["--temperature", "-1"], "temperature -1.0"),
    "tokens": (["--tokens", "0"], "--tokens 0"),
    "seed": (["--seed", "-1"], "--seed -1"),
    "no tokenizer": (["--tokenizer-dir", "/none"], "--tokenizer-dir"),
    "no file": (["--prompts", "none.jsonl"], "none.jsonl cannot be read"),
    "a folder": (["--prompt-file", "FOLDER"], "cannot be read"),
    "empty": (["--prompts", "FOLDER/empty.txt"], "has no text"),
    "no UTF-8": (["--prompts", "FOLDER/latin.txt"], "not UTF-8 at byte 2"),
    "another format": (["--prompts", "FOLDER/data.jsonl"], "line 2 is no prompt"),
    "half a character": (["--prompts", "FOLDER/surrogate.jsonl"], "line 1 is no prompt"),
    "no device": (["--device", "tpu"], "--device tpu"),
    "another model's tokenizer": (["LOAD"], "the model knows 100"),
}


@pytest.mark.parametrize("case", BAD)
def test_refusals_are_one_sentence_and_status_2(folder: Path, tmp_path: Path, capsys: Capture, case: str) -> None:
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "latin.txt").write_bytes("zzé".encode("latin-1"))
    (tmp_path / "data.jsonl").write_text('{"prompt": "x"}\n{"text": "x"}\n')
    (tmp_path / "surrogate.jsonl").write_text('{"prompt": "\\ud83e"}\n')
    flags, message = BAD[case]
    load = "smallcheckpoints" if flags == ["LOAD"] else "checkpoints"
    flags = [flag.replace("FOLDER", str(tmp_path)) for flag in flags if flag != "LOAD"]
    assert run(folder, *flags, load=load) == 2
    output = capsys.readouterr()
    assert message in output.err and output.err.count("\n") == 1 and output.out == ""


def test_a_batch_below_one_is_refused(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "prompts.txt").write_text("x")
    assert run(folder, "--prompts", str(tmp_path / "prompts.txt"), "--batch", "0") == 2
    assert "--batch 0" in capsys.readouterr().err
