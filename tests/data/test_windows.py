"""Splits by document and windows of a stream: every document in one part, every label in one window."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_slw.config.errors import ConfigError
from megatron_slw.config.schema import DataConfig
from megatron_slw.data.windows import SPLIT_NAMES, Windows, open_windows, split_bounds
from tests.data.token_datasets import counting_dataset


@pytest.mark.parametrize(
    ("split", "documents", "bounds"),
    [
        ("949,50,1", 1_000, (0, 949, 999, 1_000)),
        ("949, 50, 1", 10, (0, 9, 10, 10)),
        ("0.949,0.050,0.001", 1_000, (0, 949, 999, 1_000)),
        ("100,0,0", 7, (0, 7, 7, 7)),
        ("9,1", 10, (0, 9, 10, 10)),
        ("1", 3, (0, 3, 3, 3)),
        ("0,1,0", 3, (0, 0, 3, 3)),
        ("1,1,1", 10, (0, 3, 7, 10)),
        ("949,50,1", 0, (0, 0, 0, 0)),
    ],
)
def test_split_bounds(split: str, documents: int, bounds: tuple[int, ...]) -> None:
    assert split_bounds(split, documents) == bounds


@given(
    shares=st.tuples(*[st.integers(0, 1_000)] * 3).filter(any),
    documents=st.integers(0, 10**12),
)
def test_every_document_is_in_one_part_of_the_right_size(shares: tuple[int, ...], documents: int) -> None:
    bounds = split_bounds(",".join(map(str, shares)), documents)
    assert bounds[0] == 0 and bounds[3] == documents
    for share, first, last in zip(shares, bounds, bounds[1:], strict=False):
        assert (
            first <= last and abs((last - first) - documents * share / sum(shares)) <= 1 + documents * 1e-15
        )


@pytest.mark.parametrize(
    "split", ["", "949;50;1", "1,2,3,4", "0,0,0", "-1,2,3", "a", "1,,2", "nan", "1e9999999", "1/2"]
)
def test_a_split_that_cannot_be_read_is_refused(split: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.split must be one to three numbers, .* but is "):
        split_bounds(split, 10)


def test_parts_are_the_streams_of_their_documents(tmp_path: Path) -> None:
    counting_dataset(tmp_path / "d", [10, 20, 30, 40])
    data = DataConfig(path=str(tmp_path / "d"), split="2,1,1")
    parts = [open_windows(data, 7, name) for name in SPLIT_NAMES]
    assert [len(part.tokens) for part in parts] == [30, 30, 40]
    assert [len(part) for part in parts] == [4, 4, 5]
    assert np.concatenate([part.tokens for part in parts]).tolist() == list(range(100))


def test_each_label_of_the_stream_is_in_one_window(tmp_path: Path) -> None:
    dataset = counting_dataset(tmp_path / "d", [50, 1, 49])
    for length in (1, 7, 9, 98, 99):
        windows = Windows(dataset, "all", dataset.tokens, length)
        rows = windows.gather(np.arange(len(windows)), length)
        assert rows.shape == (99 // length, length + 1)
        assert rows[:, 1:].reshape(-1).tolist() == list(range(1, 1 + 99 // length * length))
        assert np.array_equal(rows[:, :-1] + 1, rows[:, 1:])


def test_gather_takes_the_beginning_of_windows_in_any_order(tmp_path: Path) -> None:
    dataset = counting_dataset(tmp_path / "d", [101])
    windows = Windows(dataset, "all", dataset.tokens, 10)
    rows = windows.gather(np.array([9, 0, 9]), 3)
    assert rows.tolist() == [[90, 91, 92, 93], [0, 1, 2, 3], [90, 91, 92, 93]]
    assert rows.dtype == dataset.dtype and rows.flags.owndata and rows.flags.writeable
    assert windows.gather(np.array([9]), 10)[0, -1] == 100
    for length in (0, 11):
        with pytest.raises(ValueError, match=rf"length {length} is not in \[1, 10\]"):
            windows.gather(np.array([0]), length)
    for wrong in (-1, 10):
        with pytest.raises(IndexError, match=r"-1 is below|10 is out of bounds"):
            windows.gather(np.array([wrong]), 10)


def test_a_validation_dataset_of_its_own_replaces_the_split(tmp_path: Path) -> None:
    counting_dataset(tmp_path / "train", [10, 10])
    counting_dataset(tmp_path / "valid", [5])
    data = DataConfig(path=str(tmp_path / "train"), valid_path=str(tmp_path / "valid"))
    assert len(open_windows(data, 2, "train").tokens) == 20
    assert len(open_windows(data, 2, "valid").tokens) == 5
    with pytest.raises(ConfigError, match=r"data\.valid_path is set"):
        open_windows(data, 2, "test")


def test_a_part_shorter_than_a_window_says_what_it_has_and_needs(tmp_path: Path) -> None:
    counting_dataset(tmp_path / "d", [100, 8, 3])
    data = DataConfig(path=str(tmp_path / "d"), split="1,1,1")
    assert len(open_windows(data, 7, "valid")) == 1
    with pytest.raises(ConfigError) as caught:
        open_windows(data, 8, "valid")
    assert str(caught.value).endswith(
        "/d: the valid part (1 of 3 documents by data.split 1,1,1) has 8 tokens, but one window of "
        "model.seq_length 8 needs 9. Use a larger dataset, give this part a larger share in data.split, or "
        "lower model.seq_length."
    )
    with pytest.raises(ConfigError, match="the train part .* has 0 tokens"):
        open_windows(data.model_copy(update={"split": "0,1,0"}), 8, "train")
