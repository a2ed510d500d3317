"""The loader: each window once an epoch, the same global batch on any layout, and any step read alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from megatron_slw.data.loader import TrainLoader, ValidLoader
from megatron_slw.data.windows import Windows
from megatron_slw.slw.plan import BatchStep, Plan, Run
from tests.data.token_datasets import UINT16, counting_dataset, write_dataset

LENGTH = 8


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory) -> Windows:
    """37 windows of 8 labels, with a remainder of 5 labels; the token at position i is i."""
    dataset = counting_dataset(tmp_path_factory.mktemp("data") / "d", [100, 150, 37 * LENGTH + 6 - 250])
    return Windows(dataset, "all", dataset.tokens, LENGTH)


def batch(first: int, rows: int, seq_len: int = LENGTH) -> BatchStep:
    return BatchStep(step=0, seq_len=seq_len, rows=rows, samples_before=first, tokens_before=0)


def test_each_epoch_covers_every_window_once_in_another_order(windows: Windows) -> None:
    loader = TrainLoader(windows, seed=1)
    size = len(windows)
    orders = [loader.sample_windows(epoch * size, size).tolist() for epoch in range(4)]
    assert size == 37
    assert all(sorted(order) == list(range(size)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4 and list(range(size)) not in orders
    assert TrainLoader(windows, seed=2).sample_windows(0, size).tolist() != orders[0]


def test_rows_are_the_sampled_windows(windows: Windows) -> None:
    loader = TrainLoader(windows, seed=1)
    blocks = loader.read(batch(5, 6), 0, 1)
    starts = loader.sample_windows(5, 6) * LENGTH
    assert np.array_equal(blocks.tokens_BT, starts[:, None] + np.arange(LENGTH))
    assert np.array_equal(blocks.labels_BT, starts[:, None] + np.arange(1, LENGTH + 1))
    assert blocks.loss_mask_BT is None


def test_tokens_and_labels_share_one_array_of_the_datasets_dtype(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "d", [range(100)], UINT16)
    blocks = TrainLoader(Windows(dataset, "all", dataset.tokens, LENGTH), 1).read(batch(0, 4), 0, 1)
    assert blocks.tokens_BT.dtype == UINT16
    assert np.shares_memory(blocks.tokens_BT, blocks.labels_BT)
    assert not np.shares_memory(blocks.tokens_BT, dataset.tokens)


@pytest.mark.parametrize("dp_size", [1, 2, 4])
@pytest.mark.parametrize("first", [0, 24, 36, 1_000])
def test_the_shares_of_the_ranks_are_the_global_batch(windows: Windows, dp_size: int, first: int) -> None:
    loader, step = TrainLoader(windows, seed=3), batch(first, 24, 5)
    whole = loader.read(step, 0, 1)
    shares = [loader.read(step, rank, dp_size) for rank in range(dp_size)]
    assert np.array_equal(np.concatenate([share.tokens_BT for share in shares]), whole.tokens_BT)
    assert np.array_equal(np.concatenate([share.labels_BT for share in shares]), whole.labels_BT)


def test_batches_of_any_size_read_the_same_samples(windows: Windows) -> None:
    loader = TrainLoader(windows, seed=3)
    one_by_one = np.concatenate([loader.read(batch(first, 1), 0, 1).tokens_BT for first in range(200)])
    assert np.array_equal(loader.read(batch(0, 200), 0, 1).tokens_BT, one_by_one)  # over five epochs
    assert np.array_equal(loader.read(batch(30, 120), 0, 1).tokens_BT, one_by_one[30:150])


def test_a_shorter_step_reads_the_beginning_of_the_same_samples(windows: Windows) -> None:
    loader = TrainLoader(windows, seed=3)
    full = loader.read(batch(30, 16), 0, 1)
    for seq_len in range(1, LENGTH + 1):
        short = loader.read(batch(30, 16, seq_len), 0, 1)
        assert short.tokens_BT.shape == short.labels_BT.shape == (16, seq_len)
        assert np.array_equal(short.tokens_BT, full.tokens_BT[:, :seq_len])
        assert np.array_equal(short.labels_BT, full.labels_BT[:, :seq_len])


def test_a_resumed_run_reads_on_where_it_was(windows: Windows) -> None:
    plan = Plan((Run(0, 2, 12), Run(5, 5, 12), Run(9, 8, 12)), 14, LENGTH)
    whole = TrainLoader(windows, seed=3)
    expected = [whole.read(plan.at(step), 0, 1).labels_BT for step in range(14)]
    for start in (1, 5, 8, 13):
        resumed = TrainLoader(windows, seed=3)
        for step in range(start, 14):
            assert np.array_equal(resumed.read(plan.at(step), 0, 1).labels_BT, expected[step])


def test_rows_that_do_not_divide_are_refused(windows: Windows) -> None:
    loader = TrainLoader(windows, seed=1)
    for rank, size in [(0, 5), (2, 2), (-1, 2)]:
        with pytest.raises(ValueError, match=f"12 rows cannot be shared: rank {rank} of {size}"):
            loader.read(batch(0, 12), rank, size)


def test_validation_reads_in_order_at_full_length(windows: Windows) -> None:
    loader = ValidLoader(windows)
    assert len(loader) == 37
    parts = [loader.read(0, 20), loader.read(20, 17)]
    labels = np.concatenate([part.labels_BT for part in parts])
    assert labels.reshape(-1).tolist() == list(range(1, 37 * LENGTH + 1))
    assert np.array_equal(parts[0].tokens_BT + 1, parts[0].labels_BT)
    for first, count in [(30, 8), (-1, 2), (0, -1)]:
        with pytest.raises(ValueError, match=r"are not in \[0, 37\)"):
            loader.read(first, count)
