"""Blends: exact proportions before every sample, every corpus with epochs of its own, the same batch on any layout."""

from __future__ import annotations

import itertools
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_slw.config.errors import ConfigError
from megatron_slw.config.overrides import apply_overrides
from megatron_slw.config.schema import DataConfig
from megatron_slw.data.blend import BLEND_PERIOD, Blend, BlendedWindows, open_samples, parts_of, whole_shares
from megatron_slw.data.loader import TrainLoader, ValidLoader
from megatron_slw.slw.plan import BatchStep
from tests.data.token_datasets import INT32, UINT16, write_dataset

LENGTH = 4
WINDOWS = (23, 10, 57)  # of the three corpora
WEIGHTS = (0.3, 0.5, 0.2)


def deviation(blend: Blend, samples: int) -> float:
    """The most that a corpus is ahead of or behind its share before any of the samples [0, samples]."""
    corpus, _ = blend.assign(0, samples)
    counts = (corpus[:, None] == np.arange(len(blend.shares))).cumsum(axis=0)
    due = np.arange(1, samples + 1)[:, None] * np.array(blend.shares)
    return float(np.abs(counts * blend.period - due).max() / blend.period)


@settings(max_examples=60, deadline=None)
@given(shares=st.lists(st.integers(1, 400), min_size=1, max_size=12))
def test_before_every_sample_each_corpus_has_its_share_to_less_than_one(shares: list[int]) -> None:
    blend = Blend([Fraction(share) for share in shares])
    assert deviation(blend, 2 * blend.period) < 1
    corpus, _ = blend.assign(0, blend.period)
    assert np.bincount(corpus).tolist() == list(blend.shares)


@pytest.mark.parametrize("equal", [2, 9, 31])
def test_many_equal_corpora_beside_a_small_one(equal: int) -> None:
    """Halving a blend again and again, the obvious way to compute it, goes beyond one sample here."""
    blend = Blend([Fraction(10)] * equal + [Fraction(1)])
    assert deviation(blend, 3 * blend.period) < 1


@settings(max_examples=40, deadline=None)
@given(
    shares=st.lists(st.integers(1, 50), min_size=1, max_size=6), first=st.integers(0, 10**12), count=st.integers(1, 99)
)
def test_any_sample_is_assigned_alone(shares: list[int], first: int, count: int) -> None:
    blend = Blend([Fraction(share) for share in shares])
    corpus, number = blend.assign(first, count)
    for index in range(count):
        one, its_number = blend.assign(first + index, 1)
        assert (one[0], its_number[0]) == (corpus[index], number[index])
        assert blend.position(int(corpus[index]), int(number[index])) == first + index
    for part in range(len(shares)):
        mine = number[corpus == part]
        assert np.array_equal(mine, np.arange(len(mine)) + (mine[0] if len(mine) else 0))


def test_the_numbers_within_a_corpus_count_from_zero() -> None:
    blend = Blend([Fraction(2), Fraction(3)])
    corpus, number = blend.assign(0, 1_000)
    for part, share in enumerate(blend.shares):
        assert number[corpus == part].tolist() == list(range(200 * share))


def test_the_order_is_pinned() -> None:
    # A change here would give every resumed run other data: it must be a decision, not an accident.
    assert Blend([Fraction(3), Fraction(7)]).assign(0, 10)[0].tolist() == [1, 1, 0, 1, 1, 0, 1, 1, 0, 1]
    thirds = Blend([Fraction(1), Fraction(1), Fraction(1)])
    assert thirds.assign(0, 6)[0].tolist() == [0, 1, 2, 0, 1, 2]


def test_weights_are_exact_on_any_scale() -> None:
    data = DataConfig(path=[0.1, "a", 0.2, "b", 0.7, "c"])  # as floats they do not add up to 1
    weights = [corpus.weight for corpus in data.corpora]
    assert sum(weights) == 1 and whole_shares(weights) == (1, 2, 7)
    assert [corpus.prefix for corpus in data.corpora] == ["a", "b", "c"]
    assert DataConfig(path="a").corpora == (("a", Fraction(1)),)
    assert whole_shares([Fraction(30), Fraction(60), Fraction(210)]) == (1, 2, 7)
    assert DataConfig.model_validate(data.model_dump(mode="json")) == data
    tree, _ = apply_overrides({}, ['--data.path=[0.1, "a", 0.2, "b", 0.7, "c"]'])  # as on the command line
    assert DataConfig.model_validate(tree["megatron_slw"]["data"]) == data


def test_weights_of_too_many_digits_are_refused() -> None:
    assert Blend([Fraction(1), Fraction(BLEND_PERIOD - 1)]).period == BLEND_PERIOD
    with pytest.raises(ConfigError, match=r"1:100000, which repeats after 100,001 samples; .* with fewer digits"):
        Blend([Fraction(1), Fraction(BLEND_PERIOD)])
    for wrong in ([], [Fraction(0), Fraction(1)]):
        with pytest.raises(ValueError, match="weights above 0"):
            Blend(wrong)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    """Corpus k has the tokens 1000 * k and on, so that a row shows which window of which corpus it is."""
    folder = tmp_path_factory.mktemp("data")
    path: list[float | str] = []
    for corpus, (windows, weight) in enumerate(zip(WINDOWS, WEIGHTS, strict=True)):
        tokens = np.arange(windows * LENGTH + 2) + 1_000 * corpus  # and a remainder
        write_dataset(folder / str(corpus), [tokens.tolist()], UINT16)
        path += [weight, str(folder / str(corpus))]
    return DataConfig(path=path, split="1,0,0")


def batch(first: int, rows: int, seq_len: int = LENGTH) -> BatchStep:
    return BatchStep(step=0, seq_len=seq_len, rows=rows, samples_before=first, tokens_before=0)


def read_windows(loader: TrainLoader, samples: int, rows: int, dp_size: int) -> np.ndarray:
    """(corpus, window) of the first samples, read step by step and rank by rank."""
    parts = [
        loader.read(batch(first, rows), rank, dp_size).tokens_BT
        for first in range(0, samples, rows)
        for rank in range(dp_size)
    ]
    start = np.concatenate(parts)[:, 0]
    return np.stack([start // 1_000, start % 1_000 // LENGTH], axis=1)


@pytest.mark.parametrize("dp_size", [1, 2, 4])
def test_every_epoch_of_every_corpus_covers_each_window_once(data: DataConfig, dp_size: int) -> None:
    loader = TrainLoader(open_samples(data, LENGTH, "train"), seed=1)
    read = read_windows(loader, 1_200, 12, dp_size)
    counts = np.bincount(read[:, 0])
    assert counts.tolist() == [360, 600, 240], "not the exact proportions"
    for corpus, size in enumerate(WINDOWS):
        windows = read[read[:, 0] == corpus, 1]
        epochs = [windows[first : first + size].tolist() for first in range(0, len(windows) - size + 1, size)]
        assert len(epochs) >= 4 and all(sorted(epoch) == list(range(size)) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) == len(epochs), "two epochs in the same order"


@pytest.mark.parametrize("first", [0, 7, 1_000])
@pytest.mark.parametrize("seq_len", [1, 3, LENGTH])
def test_the_global_batch_is_the_same_on_any_layout(data: DataConfig, first: int, seq_len: int) -> None:
    windows = open_samples(data, LENGTH, "train")
    assert isinstance(windows, BlendedWindows) and windows.dtype == UINT16
    loader, step = TrainLoader(windows, seed=3), batch(first, 24, seq_len)
    whole = loader.read(step, 0, 1)
    assert whole.tokens_BT.shape == (24, seq_len) and whole.tokens_BT.dtype == UINT16
    assert np.array_equal(whole.tokens_BT + 1, whole.labels_BT)
    for dp_size in (2, 3, 8):
        shares = [TrainLoader(windows, seed=3).read(step, rank, dp_size).tokens_BT for rank in range(dp_size)]
        assert np.array_equal(np.concatenate(shares), whole.tokens_BT)
    one_by_one = [loader.read(batch(first + row, 1, seq_len), 0, 1).labels_BT for row in range(24)]
    assert np.array_equal(np.concatenate(one_by_one), whole.labels_BT)


def test_corpora_of_one_size_do_not_go_in_step(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_dataset(tmp_path / name, [range(50 * LENGTH + 1)])
    data = DataConfig(path=[1, str(tmp_path / "a"), 1, str(tmp_path / "b")], split="1,0,0")
    read = read_windows(TrainLoader(open_samples(data, LENGTH, "train"), seed=1), 100, 10, 1)[:, 1]
    assert np.count_nonzero(read[::2] == read[1::2]) < 10


def test_a_list_of_one_corpus_is_that_corpus(data: DataConfig) -> None:
    prefix = data.corpora[0].prefix
    plain = TrainLoader(open_samples(DataConfig(path=prefix), LENGTH, "train"), seed=1)
    listed = TrainLoader(open_samples(DataConfig(path=[5, prefix]), LENGTH, "train"), seed=1)
    assert np.array_equal(plain.read(batch(0, 99), 0, 1).tokens_BT, listed.read(batch(0, 99), 0, 1).tokens_BT)


def test_a_wider_dtype_in_one_corpus_widens_the_rows(tmp_path: Path) -> None:
    write_dataset(tmp_path / "a", [range(65_000, 65_100)], UINT16)
    write_dataset(tmp_path / "b", [range(70_000, 70_100)], INT32)
    data = DataConfig(path=[1, str(tmp_path / "a"), 1, str(tmp_path / "b")], split="1,0,0")
    tokens = TrainLoader(open_samples(data, LENGTH, "train"), seed=1).read(batch(0, 40), 0, 1).tokens_BT
    assert tokens.dtype == np.int32 and np.all((tokens // 5_000 == 13) | (tokens // 5_000 == 14))


def test_validation_takes_each_share_in_order_and_no_window_twice(data: DataConfig) -> None:
    windows = open_samples(data.model_copy(update={"split": "0,1,0"}), LENGTH, "valid")
    loader = ValidLoader(windows)
    assert len(loader) == 20  # the corpus of 10 windows gives every second sample
    whole = loader.read(0, len(loader)).tokens_BT
    corpus, window = whole[:, 0] // 1_000, whole[:, 0] % 1_000 // LENGTH
    for part in range(3):
        assert window[corpus == part].tolist() == list(range(np.count_nonzero(corpus == part)))
    assert np.bincount(corpus).tolist() == [6, 10, 4]
    assert np.array_equal(np.concatenate([loader.read(0, 7).tokens_BT, loader.read(7, 13).tokens_BT]), whole)
    with pytest.raises(ValueError, match="are not in"):
        loader.read(0, len(loader) + 1)


def test_splits_are_by_document_of_each_corpus(tmp_path: Path) -> None:
    for name, documents in (("a", 10), ("b", 20)):
        write_dataset(tmp_path / name, [range(100)] * documents)
    path = [1, str(tmp_path / "a"), 3, str(tmp_path / "b")]
    data = DataConfig(path=path, split="8,2,0")
    assert [len(part.tokens) for part in parts_of(open_samples(data, LENGTH, "train"))] == [800, 1_600]
    assert [len(part.tokens) for part in parts_of(open_samples(data, LENGTH, "valid"))] == [200, 400]
    other = data.model_copy(update={"valid_path": str(tmp_path / "a")})
    assert [len(part.tokens) for part in parts_of(open_samples(other, LENGTH, "train"))] == [1_000, 2_000]
    assert [len(part.tokens) for part in parts_of(open_samples(other, LENGTH, "valid"))] == [1_000]


def test_a_corpus_that_is_missing_or_too_small_is_named(tmp_path: Path) -> None:
    write_dataset(tmp_path / "a", [range(100)])
    write_dataset(tmp_path / "small", [range(3)])
    for name, message in (("none", r"none\.idx does not exist"), ("small", r"small: the train part .* 3 tokens")):
        data = DataConfig(path=[1, str(tmp_path / "a"), 1, str(tmp_path / name)], split="1,0,0")
        with pytest.raises(ConfigError, match=message):
            open_samples(data, LENGTH, "train")


def test_the_counts_hold_at_every_prefix_of_a_run(data: DataConfig) -> None:
    """The count itself, on what the loader reads: exact after every tenth sample, to less than one in between."""
    loader = TrainLoader(open_samples(data, LENGTH, "train"), seed=9)
    corpus = read_windows(loader, 500, 5, 1)[:, 0]
    for count, part in itertools.product(range(1, 501), range(3)):
        due = Fraction(str(WEIGHTS[part])) * count
        assert abs(np.count_nonzero(corpus[:count] == part) - due) < 1
        assert count % 10 or np.count_nonzero(corpus[:count] == part) == due
