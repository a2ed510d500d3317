"""The memory bound of docs/data.md: nothing for a longer corpus, a small multiple of the longest document."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from megatron_slw.data.indexed import IndexedDataset
from megatron_slw.data.tokenizer_training import train_sentencepiece
from tests.data.text_files import TEXTS, small_tokenizer, write_jsonl

ROOT = Path(__file__).resolve().parents[2]
CORPUS_BOUND = 32e6
"""Bytes; a run of one process has one piece of a megabyte in the works."""
BOUNDS = {"one.txt": 8, "one.jsonl": 8, "wide.jsonl": 16}
"""Bytes for each byte of the longest document."""
WHOLE_BOUND = 100
"""The same for a library that takes all of a document at once."""


def growth(folder: Path, name: str, megabytes: float, tokenizer: str) -> float:
    """By how much preprocessing so much text raises the peak memory of a fresh process."""
    command = [sys.executable, "-m", "tests.data.peak_memory", str(folder), name, str(megabytes), tokenizer]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    size, number = (folder / name).stat().st_size, IndexedDataset(folder / "out_text_document").num_documents
    assert size > 0.95e6 * megabytes and (number == 1) == (name != "short.jsonl")
    return float(done.stdout)


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    small_tokenizer(tmp_path)
    assert growth(tmp_path, "short.jsonl", 40, "tokenizer.json") < CORPUS_BOUND


@pytest.mark.parametrize("name", BOUNDS)
def test_memory_is_bounded_by_the_longest_document(tmp_path: Path, name: str) -> None:
    small_tokenizer(tmp_path)
    found = growth(tmp_path, name, 16, "tokenizer.json")
    size = (tmp_path / name).stat().st_size
    assert found < BOUNDS[name] * size, f"{found / size:.1f} bytes for each of {size / 1e6:.0f} MB"


def test_a_library_that_takes_a_document_whole_is_bounded_too(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", TEXTS)
    train_sentencepiece([str(tmp_path / "train.jsonl")], str(tmp_path / "t.model"), 330)
    found = growth(tmp_path, "one.txt", 3, "t.model")
    size = (tmp_path / "one.txt").stat().st_size
    assert found < WHOLE_BOUND * size, f"{found / size:.1f} bytes for each of {size / 1e6:.0f} MB"
