"""Where documents begin in a row: against a search of one document after the other."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_slw.config.schema import DataConfig
from megatron_slw.data.blend import open_samples, parts_of
from megatron_slw.data.documents import document_starts
from megatron_slw.data.indexed import IndexedDataset
from megatron_slw.data.loader import Blocks, TrainLoader, ValidLoader
from megatron_slw.data.windows import SPLIT_NAMES, open_windows
from megatron_slw.data.writer import IndexedDatasetWriter
from megatron_slw.slw.plan import BatchStep
from tests.data.token_datasets import INT32, counting_dataset

LENGTHS = [5, 0, 1, 0, 0, 3, 40, 2, 0, 1, 1, 30, 0]  # of documents: empty ones, and longer than a window of 8


def first_positions(lengths: Sequence[int]) -> set[int]:
    """Positions of the first token of each document that has one."""
    first, found = 0, set()
    for length in lengths:
        if length:
            found.add(first)
        first += length
    return found


def expected_starts(blocks: Blocks, lengths: Sequence[int]) -> np.ndarray:
    """Of a counting dataset, whose token is its position."""
    return np.isin(blocks.tokens_BT, list(first_positions(lengths)))


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(0, 9) | st.just(0) | st.integers(10, 60), max_size=30), seed=st.integers(0, 99))
def test_every_document_start_is_marked_and_nothing_else(lengths: list[int], seed: int) -> None:
    generator = np.random.default_rng(seed)
    total = sum(lengths)
    with tempfile.TemporaryDirectory() as folder:
        dataset = counting_dataset(Path(folder) / "d", lengths)
        length = int(generator.integers(1, 20))
        first = generator.integers(0, max(1, total - length + 1), 17)
        found = document_starts(dataset, first, min(length, total))
    positions = first[:, None] + np.arange(min(length, total))
    assert found.dtype == bool
    assert np.array_equal(found, np.isin(positions, list(first_positions(lengths))))


def test_a_document_of_many_sequences_begins_once(tmp_path: Path) -> None:
    dataset = counting_dataset(tmp_path / "d", [4, 2, 3, 5, 1])
    dataset.document_bounds = np.array([0, 2, 2, 4, 5, 5])  # sequences 0-1, none, 2-3, 4, none
    assert np.flatnonzero(document_starts(dataset, np.array([0]), 15)).tolist() == [0, 6, 14]
    assert dataset.document_starts(np.arange(6)).tolist() == [0, 6, 6, 14, 15, 15]


def test_a_dataset_of_no_token_has_no_start(tmp_path: Path) -> None:
    with IndexedDatasetWriter(tmp_path / "d", INT32) as writer:
        writer.finish()
    dataset = IndexedDataset(tmp_path / "d")
    assert document_starts(dataset, np.zeros(3, np.int64), 0).shape == (3, 0)
    assert dataset.document_starts(np.array([0])).tolist() == [0]


def test_each_part_of_a_split_marks_the_starts_of_its_own_documents(tmp_path: Path) -> None:
    counting_dataset(tmp_path / "d", LENGTHS * 3)
    for name in SPLIT_NAMES:
        windows = open_windows(DataConfig(path=str(tmp_path / "d"), split="1,1,1"), 8, name)
        index = np.arange(len(windows))[::-1]
        for length in (1, 5, 8):
            tokens = windows.gather(index, length)[:, :-1]
            starts = windows.starts(index, length)
            assert np.array_equal(starts, np.isin(tokens, list(first_positions(LENGTHS * 3)))), (name, length)
        assert windows.starts(np.array([0]), 1).all(), "a part begins with a document"


def test_the_loaders_mark_starts_where_asked(tmp_path: Path) -> None:
    counting_dataset(tmp_path / "d", LENGTHS * 5)
    windows = open_windows(DataConfig(path=str(tmp_path / "d"), split="1"), 8, "train")
    step = BatchStep(step=0, seq_len=6, rows=80, samples_before=30, tokens_before=0)  # over several epochs
    blocks = TrainLoader(windows, 1, track_documents=True).read(step, 1, 2)
    assert blocks.starts_BT is not None and blocks.starts_BT.shape == (40, 6) and blocks.starts_BT.any()
    assert np.array_equal(blocks.starts_BT, expected_starts(blocks, LENGTHS * 5))
    assert TrainLoader(windows, 1).read(step, 1, 2).starts_BT is None
    valid = ValidLoader(windows, track_documents=True).read(3, 9)
    assert valid.starts_BT is not None
    assert np.array_equal(valid.starts_BT, expected_starts(valid, LENGTHS * 5))
    assert ValidLoader(windows).read(3, 9).starts_BT is None


def test_a_blend_marks_the_starts_of_each_corpus(tmp_path: Path) -> None:
    counting_dataset(tmp_path / "a", LENGTHS * 5)
    counting_dataset(tmp_path / "b", [7] * 50)
    data = DataConfig(path=[0.7, str(tmp_path / "a"), 0.3, str(tmp_path / "b")], split="1")
    windows = open_samples(data, 8, "train")
    loader = TrainLoader(windows, 1, track_documents=True)
    blocks = loader.read(BatchStep(step=0, seq_len=7, rows=100, samples_before=0, tokens_before=0), 0, 1)
    assert blocks.starts_BT is not None
    corpus, _ = windows.blend.assign(0, 100)
    for part, lengths in enumerate((LENGTHS * 5, [7] * 50)):
        rows = corpus == part
        share = Blocks(blocks.tokens_BT[rows], blocks.labels_BT[rows])
        assert rows.sum() == (70, 30)[part] and len(parts_of(windows)) == 2
        assert np.array_equal(blocks.starts_BT[rows], expected_starts(share, lengths))
