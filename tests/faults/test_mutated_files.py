"""300 mutated tokenizer files and 300 mutated configurations: taken or refused in a sentence, in a bounded time."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece

from tests.config.conftest import GOOD
from tests.data.test_tiktoken_ranks import write_ranks
from tests.data.text_files import TEXTS, small_tokenizer
from tests.train.test_pretrain import ROOT, environment

TOKENIZERS = ("ranks", "sentencepiece", "hugging-face", "gpt2")
QUICK = 10
SEEDS = {name: 75 for name in TOKENIZERS} | {"configurations": 300}
PARAMS = [
    pytest.param(what, first, stop, marks=marks, id=f"{what}-seeds-{first}-to-{stop - 1}")
    for what, count in SEEDS.items()
    for first, stop, marks in ((0, QUICK, ()), (QUICK, count, pytest.mark.campaign))
]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good files of each kind, in a folder of its own."""
    folder = tmp_path_factory.mktemp("good")
    for name in SEEDS:
        (folder / name).mkdir()
    write_ranks(folder / "ranks" / "good")
    (folder / "sentencepiece" / "text").write_text("".join(TEXTS * 3))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "sentencepiece" / "text"), model_prefix=str(folder / "sentencepiece" / "m"), vocab_size=120,
        minloglevel=2, hard_vocab_limit=False,
    )  # fmt: skip
    (folder / "sentencepiece" / "m.model").rename(folder / "sentencepiece" / "good")
    trained = Path(str(small_tokenizer(folder / "hugging-face").tokenizer_model))
    model = json.loads(trained.read_text())["model"]
    trained.rename(folder / "hugging-face" / "good")
    (folder / "gpt2" / "good.json").write_text(json.dumps(model["vocab"]))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (folder / "gpt2" / "good.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    (folder / "configurations" / "good.json").write_text(json.dumps(GOOD))
    for path in sorted((ROOT / "examples").glob("*.json")):
        shutil.copy(path, folder / "configurations" / f"good_{path.name}")
    return folder


def outcomes(what: str, folder: Path, first: int, stop: int, cwd: Path) -> dict[int, str]:
    """What became of each seed; a process that died is an outcome, and the next one goes on behind that seed."""
    found: dict[int, str] = {}
    while first < stop:
        command = [sys.executable, "-m", "tests.faults.hostile_child", what, str(folder), str(first), str(stop)]
        env = environment() | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, errors="replace", check=False)
        for line in done.stdout.splitlines():
            word, _, rest = line.partition(" ")
            if word == "seed":
                first = int(rest)
                found[first] = f"the process died with {done.returncode}: {done.stderr[-300:]}"
            elif word == "end":
                found[first] = rest
        assert found, f"nothing was tried: {done.stderr[-2000:]}"
        first += 1
    return found


@pytest.mark.fault(8)
@pytest.mark.parametrize(("what", "first", "stop"), PARAMS)
def test_mutated_files(
    good: Path, tmp_path: Path, what: str, first: int, stop: int, injections: Callable[[int], None]
) -> None:
    """No crash of a native library, no hang, no traceback, no id beyond the vocabulary, nothing executed."""
    folder = shutil.copytree(good / what, tmp_path / what)
    found = outcomes(what, folder, first, stop, tmp_path)
    assert len(found) == stop - first
    injections(len(found))
    wrong = {f"{what} seed {seed}": said for seed, said in found.items() if said not in ("taken", "refused")}
    assert not wrong, json.dumps(wrong, indent=1)
    assert not list(tmp_path.glob("**/executed")), "something in a file was run"
    counts = Counter(found.values())
    print(f"{what}: {dict(counts)}")
    assert counts["refused"], "none was refused: the mutations do nothing"
