"""Datasets go both ways between this project and megatron-core 0.16.1, which is fetched from PyPI and not kept.

Of its wheel only the dataset module and what that imports are loaded, with stand-ins for the packages around them:
importing those would need Transformer Engine and more.
"""

from __future__ import annotations

import importlib
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from megatron_slw.config.errors import ConfigError
from megatron_slw.data.indexed import IndexedDataset
from megatron_slw.data.windows import Windows
from tests.data.token_datasets import INT32, UINT16, write_dataset

VERSION = "0.16.1"
DTYPES = pytest.mark.parametrize("dtype", [UINT16, INT32], ids=["uint16", "int32"])


def wheel() -> Path:
    """megatron-core's wheel, downloaded once to the user's cache."""
    folder = Path.home() / ".cache" / "megatron_slw" / "peers"
    found = sorted(folder.glob(f"megatron_core-{VERSION}-cp3{sys.version_info.minor}-*.whl"))
    if not found:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--quiet"]
        command += ["--disable-pip-version-check", "--retries", "1", "--timeout", "20", "--dest", str(folder)]
        result = subprocess.run([*command, f"megatron-core=={VERSION}"], capture_output=True, text=True, timeout=120)
        found = sorted(folder.glob(f"megatron_core-{VERSION}-*.whl"))
        if result.returncode or not found:
            pytest.skip(f"megatron-core {VERSION} cannot be downloaded: {result.stderr.strip()[-200:]}")
    return found[0]


@pytest.fixture(scope="module")
def megatron() -> Iterator[Any]:
    """megatron.core.datasets.indexed_dataset."""
    root, names = wheel(), ("megatron", "megatron.core", "megatron.core.datasets")
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            package = ModuleType(name)
            package.__path__ = [str(root / name.replace(".", "/"))]  # zipimport reads the wheel itself
            patch.setitem(sys.modules, name, package)
        rest = ModuleType("megatron.core.utils")
        rest.log_single_rank = lambda logger, *args, **kwargs: None  # type: ignore[attr-defined]
        patch.setitem(sys.modules, rest.__name__, rest)
        level = logging.getLogger("megatron").level
        yield importlib.import_module("megatron.core.datasets.indexed_dataset")
        logging.getLogger("megatron").setLevel(level)
        for name in set(sys.modules) - before:
            if name.startswith("megatron."):
                patch.delitem(sys.modules, name)


def random_documents(dtype: np.dtype[np.integer], count: int = 300) -> list[np.ndarray]:
    """Documents of 0 to 50 tokens, with every id that is special to the dtype."""
    rng = np.random.default_rng(5)
    top = 65_535 if dtype == UINT16 else 2**31 - 1
    documents = [rng.integers(0, top, int(rng.integers(0, 50)), endpoint=True).astype(dtype) for _ in range(count)]
    return [*documents, np.array([0, 1, top - 1, top], dtype)]


def write_theirs(megatron: Any, prefix: Path, documents: list[list[np.ndarray]], dtype: np.dtype[np.integer]) -> None:
    """Each document a list of sequences, as their preprocessing adds them."""
    builder = megatron.IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype.type)
    for sequences in documents:
        builder.add_document(np.concatenate(sequences).tolist(), [len(sequence) for sequence in sequences])
    builder.finalize(f"{prefix}.idx")


@DTYPES
def test_ours_reads_what_theirs_writes(megatron: Any, tmp_path: Path, dtype: np.dtype[np.integer]) -> None:
    sequences = random_documents(dtype)
    documents = [sequences[:3], *[[sequence] for sequence in sequences[3:200]], sequences[200:]]
    write_theirs(megatron, tmp_path / "d", documents, dtype)
    dataset = IndexedDataset(tmp_path / "d")
    assert dataset.dtype == dtype and dataset.num_sequences == len(sequences)
    assert all(np.array_equal(dataset[number], sequence) for number, sequence in enumerate(sequences))
    assert dataset.num_documents == len(documents)
    assert all(np.array_equal(dataset.document(number), np.concatenate(d)) for number, d in enumerate(documents))
    assert np.array_equal(dataset.tokens, np.concatenate(sequences))


@DTYPES
@pytest.mark.parametrize("mmap", [True, False], ids=["mmap", "file"])
def test_theirs_reads_what_ours_writes(megatron: Any, tmp_path: Path, dtype: np.dtype[np.integer], mmap: bool) -> None:
    documents = random_documents(dtype)
    write_dataset(tmp_path / "d", documents, dtype)  # type: ignore[arg-type]
    theirs = megatron.IndexedDataset(str(tmp_path / "d"), mmap=mmap)
    assert len(theirs) == len(documents)
    for number, document in enumerate(documents):
        found = theirs[number]
        assert found.dtype == dtype and np.array_equal(found, document), f"document {number}"
    assert theirs.sequence_lengths.tolist() == [len(document) for document in documents]
    assert theirs.document_indices.tolist() == list(range(len(documents) + 1))


@DTYPES
def test_both_write_the_same_bytes(megatron: Any, tmp_path: Path, dtype: np.dtype[np.integer]) -> None:
    documents = random_documents(dtype)
    write_dataset(tmp_path / "ours", documents, dtype)  # type: ignore[arg-type]
    write_theirs(megatron, tmp_path / "theirs", [[document] for document in documents], dtype)
    for ending in ("bin", "idx"):
        assert (tmp_path / f"ours.{ending}").read_bytes() == (tmp_path / f"theirs.{ending}").read_bytes()


def test_theirs_merges_ours_and_ours_samples_it(megatron: Any, tmp_path: Path) -> None:
    documents = random_documents(UINT16)
    write_dataset(tmp_path / "a", documents[:100], UINT16)  # type: ignore[arg-type]
    write_dataset(tmp_path / "b", documents[100:], UINT16)  # type: ignore[arg-type]
    builder = megatron.IndexedDatasetBuilder(str(tmp_path / "both.bin"), dtype=np.uint16)
    builder.add_index(str(tmp_path / "a"))
    builder.add_index(str(tmp_path / "b"))
    builder.finalize(str(tmp_path / "both.idx"))
    both = IndexedDataset(tmp_path / "both")
    stream = np.concatenate(documents)
    assert both.num_documents == len(documents) and np.array_equal(both.tokens, stream)
    windows = Windows(both, "all", both.tokens, 16)
    assert np.array_equal(windows.gather(np.array([7]), 16)[0], stream[7 * 16 : 7 * 16 + 17])


def test_their_single_items_are_sequences_of_one_document(megatron: Any, tmp_path: Path) -> None:
    builder = megatron.IndexedDatasetBuilder(str(tmp_path / "d.bin"), dtype=np.int32)
    for item in ([1, 2], [3], [4, 5, 6]):
        builder.add_item(torch.tensor(item))
    builder.end_document()
    builder.finalize(str(tmp_path / "d.idx"))
    dataset = IndexedDataset(tmp_path / "d")
    assert (len(dataset), dataset.num_documents, dataset.document(0).tolist()) == (3, 1, [1, 2, 3, 4, 5, 6])


def test_their_multimodal_datasets_are_refused_by_name(megatron: Any, tmp_path: Path) -> None:
    builder = megatron.IndexedDatasetBuilder(str(tmp_path / "d.bin"), dtype=np.uint16, multimodal=True)
    builder.add_item(torch.tensor([1, 2]), mode=1)
    builder.end_document()
    builder.finalize(str(tmp_path / "d.idx"))
    with pytest.raises(ConfigError, match=r"d\.idx: .* multimodal datasets are not supported"):
        IndexedDataset(tmp_path / "d")
