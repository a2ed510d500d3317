"""The State of the Union addresses as token datasets, a training and a validation one, for the quality benchmarks."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random

from benchmarks.slw_quality_evaluation import without_nan

ROOT = Path(__file__).resolve().parents[1]
CACHE = Path.home() / ".cache" / "megatron_slw" / "tests" / "sotu"
"""Where `python -m pytest tests/data/test_real_corpus.py` puts the texts."""
HELD_OUT = 16
"""Documents of the validation set."""
DONE = "done.json"


def addresses(folder: Path) -> list[Path]:
    """The texts; SystemExit says how to get them."""
    texts = sorted(folder.glob("*.txt"))
    if not texts:
        raise SystemExit("the corpus is not there: python -m pytest tests/data/test_real_corpus.py fetches it.")
    return texts


def prepare(data: Path, texts: Sequence[Path], vocabulary: int, epoch_documents: int = 0) -> None:
    """Shuffle and split the documents, train the tokenizer on the training part, write the datasets.

    Args:
        data: gets train, valid and tokenizer.json; nothing is done where they are complete.
        texts: one document each.
        vocabulary: pieces of the tokenizer.
        epoch_documents: of a third dataset, `epoch`: so many of the training documents; 0 makes none.
    """
    if (data / DONE).is_file():
        return
    data.mkdir(parents=True, exist_ok=True)
    shuffled = sorted(texts, key=lambda path: path.name)
    Random(1).shuffle(shuffled)
    held_out, train = shuffled[:HELD_OUT], shuffled[HELD_OUT:]
    parts = {"train": train, "valid": held_out}
    if epoch_documents:
        parts["epoch"] = train[:epoch_documents]
    for name, paths in parts.items():
        lines = (json.dumps({"text": path.read_text(encoding="utf-8")}) + "\n" for path in paths)
        (data / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    tokenizer = str(data / "tokenizer.json")
    size = str(vocabulary)
    tool("train_tokenizer", "--input", str(data / "train.jsonl"), "--vocab-size", size, "--output", tokenizer)
    for name in parts:
        prefix = ["--input", str(data / f"{name}.jsonl"), "--output-prefix", str(data / name), "--append-eod"]
        tool("preprocess_data", *prefix, "--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", tokenizer)
    write_json(data / DONE, {})


def tool(name: str, *arguments: str) -> None:
    """Run one of tools/."""
    subprocess.run([sys.executable, str(ROOT / "tools" / f"{name}.py"), *arguments], check=True)


def write_json(path: Path, value: object) -> None:
    """Write by renaming a complete file into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    text = json.dumps(without_nan(value), indent=1)
    text = re.sub(r"\[[^][{}]*\]", lambda found: " ".join(found[0].split()), text)  # a list of numbers in one line
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(path)
