"""The rows that the loader makes for each token mode: every label of the corpora as often as the mode says."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from megatron_slw.data.blend import Blend, BlendedWindows
from megatron_slw.data.loader import TrainLoader
from megatron_slw.data.rows import Blocks, sliced_rows, whole_rows
from megatron_slw.data.windows import Windows
from megatron_slw.slw.ledger import MODES
from megatron_slw.slw.plan import Plan, Run
from megatron_slw.slw.slices import OneEach, one_each
from tests.data.token_datasets import counting_dataset

N = 16
RUNS = (Run(0, 5, 4), Run(2, 7, 4), Run(4, 16, 4))


def one_corpus(folder: Path) -> Windows:
    """30 windows; the token at position i is i, so a label names its place."""
    dataset = counting_dataset(folder / "one", [100, 7, 30 * N + 1 - 107])
    return Windows(dataset, "all", dataset.tokens, N)


def two_corpora(folder: Path) -> BlendedWindows:
    """10 and 20 windows, one to two; the second corpus counts on where the first ends."""
    first = counting_dataset(folder / "a", [10 * N + 1])
    second = counting_dataset(folder / "b", [5, 20 * N + 1 - 5])
    shifted = np.asarray(second.tokens).astype(np.int32) + 1000
    parts = (Windows(first, "a", first.tokens, N), Windows(second, "b", shifted, N))
    return BlendedWindows(parts, Blend([Fraction(1), Fraction(2)]))


def plan_of(mode: str, samples: int = 30) -> Plan:
    steps = {"seqlen_truncate": 8, "seqlen_reshape": 11, "seqlen_replay": 12, "seqlen_tailpack": 11}
    return Plan(RUNS, steps.get(mode, 12), N, mode, samples)


def trained(blocks: Blocks) -> np.ndarray:
    """The labels that count, after checking that each follows its token in the corpus."""
    mask_BT = np.ones(blocks.labels_BT.shape) if blocks.loss_mask_BT is None else blocks.loss_mask_BT
    on = mask_BT > 0
    assert np.array_equal(blocks.tokens_BT[on] + 1, blocks.labels_BT[on]), "a label does not follow its token"
    return blocks.labels_BT[on]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dp_size", [1, 2])
@pytest.mark.parametrize("corpora", [one_corpus, two_corpora])
def test_an_epoch_label_by_label(tmp_path: Path, mode: str, dp_size: int, corpora) -> None:
    windows = corpora(tmp_path)
    assert len(windows) == 30
    loader, plan = TrainLoader(windows, seed=5), plan_of(mode)
    labels = []
    for step in map(plan.at, range(plan.total_steps)):
        shares = [loader.read(step, rank, dp_size) for rank in range(dp_size)]
        assert len({share.loss_mask_BT is None for share in shares}) == 1, "only some ranks have a mask"
        got = np.concatenate([trained(share) for share in shares])
        assert len(got) == step.tokens, "the loss would be divided by another count than it has labels"
        labels.append(got)
    counts = np.bincount(np.concatenate(labels), minlength=2000)
    parts = windows.parts if isinstance(windows, BlendedWindows) else (windows,)
    all_labels = np.concatenate([part.tokens[1:] for part in parts])
    expected = 1 if mode in ("seqlen_reshape", "seqlen_replay", "seqlen_tailpack") else None
    if expected is not None:
        assert (counts[all_labels] == 1).all(), "a label is lost or trained twice"
    elif mode == "seqlen_truncate":
        assert counts.max() == 1 and (counts[all_labels] == 0).sum() == plan.tokens_discarded == 8 * 11 + 8 * 9
    else:
        assert counts[all_labels].min() == 1 and (counts == 2).sum() == 8 * 5 + 8 * 7
    assert counts.sum() == counts[all_labels].sum(), "a label is none of the corpora's"


@pytest.mark.parametrize("corpora", [one_corpus, two_corpora])
def test_both_ways_of_making_rows_agree(tmp_path: Path, corpora) -> None:
    windows = corpora(tmp_path)
    corpus = np.array([0, 1, 0, 1]) if isinstance(windows, BlendedWindows) else np.zeros(4, np.int64)
    window = np.array([3, 0, 9, 4])
    for length in (1, 7, N):
        slices = one_each(OneEach(0, length, 0, 0, fresh=True), 0, 4, 0)
        copied = whole_rows(windows, corpus, window, length, True)
        placed = sliced_rows(windows, corpus, window, slices, (4, length), True)
        assert np.array_equal(copied.tokens_BT, placed.tokens_BT)
        assert np.array_equal(copied.labels_BT, placed.labels_BT)
        assert copied.tokens_BT.dtype == placed.tokens_BT.dtype
        starts_BT = copied.starts_BT.copy()
        starts_BT[:, 0] = True  # the beginning of a slice
        assert np.array_equal(starts_BT, placed.starts_BT)


def test_a_seam_between_samples_begins_anew_where_documents_are_tracked(tmp_path: Path) -> None:
    loader = TrainLoader(one_corpus(tmp_path), seed=5, track_documents=True)
    plan = plan_of("seqlen_tailpack")
    step = plan.at(4)
    slices = step.slices(0, step.rows)
    blocks = loader.read(step, 0, 1)
    assert len(slices.row) > step.rows
    assert blocks.starts_BT[slices.row, slices.column].all()
    jumps = blocks.tokens_BT[:, 1:] != blocks.tokens_BT[:, :-1] + 1
    assert (blocks.starts_BT[:, 1:] >= jumps).all(), "a row goes on in another sample without a start"


def test_padding_rows_are_masked(tmp_path: Path) -> None:
    loader, plan = TrainLoader(one_corpus(tmp_path), seed=5), plan_of("seqlen_truncate")
    last = plan.at(plan.total_steps - 1)
    blocks = loader.read(last, 1, 2)
    assert last.tokens == 2 * N and blocks.loss_mask_BT is not None
    assert not blocks.loss_mask_BT.any() and not blocks.tokens_BT.any()
