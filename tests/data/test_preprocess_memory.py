"""The memory bound of docs/data.md: nothing for a longer corpus, a small multiple of the longest document."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from megatron_slw.data.indexed import IndexedDataset
from tests.data.text_files import small_tokenizer

ROOT = Path(__file__).resolve().parents[2]
CORPUS_BOUND = 32e6
"""Bytes; a run of one process has one piece of a megabyte in the works. Measured: 1 MB."""
BYTES_PER_BYTE = 20
"""Of the longest document. Measured: 9."""


def growth(folder: Path, name: str, megabytes: float) -> float:
    """By how much preprocessing so much text raises the peak memory of a fresh process."""
    command = [sys.executable, "-m", "tests.data.peak_memory", str(folder), name, str(megabytes)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


@pytest.mark.parametrize(("name", "megabytes", "bound"), [("a.jsonl", 40, CORPUS_BOUND), ("a.txt", 12, None)])
def test_memory_is_bounded(tmp_path: Path, name: str, megabytes: float, bound: float | None) -> None:
    small_tokenizer(tmp_path)
    found = growth(tmp_path, name, megabytes)
    size = (tmp_path / name).stat().st_size
    assert size > 0.95e6 * megabytes
    assert found < (bound or BYTES_PER_BYTE * size), f"{found / 1e6:.0f} MB for {size / 1e6:.0f} MB"
    if name.endswith(".txt"):
        assert IndexedDataset(tmp_path / "out_text_document").num_documents == 1
