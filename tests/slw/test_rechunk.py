"""Re-chunked batches: every token once, in rows of its own, beside its label."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from megatron_slw.slw.functional import set_batch_sequence_length

LIBRARIES = pytest.mark.parametrize("of", [torch.tensor, np.array], ids=["torch", "numpy"])


@LIBRARIES
@pytest.mark.parametrize("full", [1, 7, 16, 29])
@pytest.mark.parametrize("length", [1, 2, 5, 8, 16, 40])
def test_every_label_is_there_once_beside_its_input(of: Any, full: int, length: int) -> None:
    """Composer's flattened stream loses the remainder and puts two sequences into one row."""
    tokens = np.arange(1, 1 + 3 * (full + 1)).reshape(3, full + 1)
    x, y = set_batch_sequence_length((of(tokens[:, :-1]), of(tokens[:, 1:])), length, truncate=False)
    x, y = np.asarray(x), np.asarray(y)
    assert x.shape == y.shape == (3 * -(-full // length), min(length, full))
    valid = y != -100
    assert y[valid].tolist() == tokens[:, 1:].ravel().tolist(), "a label is lost, doubled or out of order"
    assert (x[valid] + 1 == y[valid]).all() and (x[~valid] == 0).all()
    rows_of_origin = [set((row[ok] - 2) // (full + 1)) for row, ok in zip(y, valid, strict=True)]
    assert all(len(origin) == 1 for origin in rows_of_origin), "a row crosses into another sequence"


@LIBRARIES
def test_padding_is_marked_in_every_tensor(of: Any) -> None:
    ones = np.ones((2, 5), np.int64)
    batch = {"input_ids": ones, "attention_mask": ones, "labels": ones, "token_type_ids": ones, "note": "kept"}
    batch = {name: value if isinstance(value, str) else of(value) for name, value in batch.items()}
    cut = set_batch_sequence_length(batch, 3, truncate=False, pad_token_id=9, label_pad_token_id=-1)
    last = {name: value if isinstance(value, str) else value[1].tolist() for name, value in cut.items()}
    assert last == {
        "input_ids": [1, 1, 9],
        "attention_mask": [1, 1, 0],
        "labels": [1, 1, -1],
        "token_type_ids": [1, 1, 0],
        "note": "kept",
    }
    assert tuple(batch["input_ids"].shape) == (2, 5)


@LIBRARIES
def test_rows_of_nothing_but_padding_are_left_out(of: Any) -> None:
    """A softmax over no key is not a number, and its gradient none for the whole batch."""
    mask = np.array([[1, 1, 1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1, 1, 1]])
    batch = {"input_ids": of(np.arange(16).reshape(2, 8)), "attention_mask": of(mask)}
    cut = set_batch_sequence_length(batch, 2, truncate=False)
    assert np.asarray(cut["attention_mask"]).tolist() == [[1, 1], [1, 0], [0, 1], [1, 1]]
    assert np.asarray(cut["input_ids"]).tolist() == [[0, 1], [2, 3], [12, 13], [14, 15]]


@LIBRARIES
def test_masks_of_pairs_give_the_blocks_on_their_diagonal(of: Any) -> None:
    mask = np.arange(2 * 25).reshape(2, 1, 5, 5)
    tokens = np.zeros((2, 5), np.int64)
    cut = set_batch_sequence_length({"labels": of(tokens), "mask": of(mask)}, 3, truncate=False)["mask"]
    cut = np.asarray(cut)
    assert cut.shape == (4, 1, 3, 3)
    assert (cut[2] == mask[1, :, :3, :3]).all() and (cut[3, :, :2, :2] == mask[1, :, 3:, 3:]).all()
    assert (cut[3, :, 2] == 0).all() and (cut[3, :, :, 2] == 0).all()


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"input_ids": torch.zeros(2, 8)}, "nothing would mark the padding"),
        ((torch.zeros(2, 8),) * 3, "nothing would mark the padding"),
        ((torch.zeros(2, 8), torch.zeros(2, 8)), "cannot hold the label -100"),
        ((np.zeros((2, 8), np.uint16), np.zeros((2, 8), np.uint16)), "cannot hold the label -100"),
        ((torch.zeros(2, 8), torch.zeros(2)), "one value a row"),
        ({"x": torch.zeros(2, 8), "names": ["a", "b"]}, "one value a row"),
        ((torch.zeros(2, 8), torch.zeros(2, 7)), "7 and 8 positions"),
        ((torch.zeros(2, 8), torch.zeros(1, 8)), "1 and 2 rows"),
        ({"labels": torch.zeros(2, 8).long(), "mask": torch.zeros(2, 8, 8)}, "use booleans"),
    ],
)
def test_what_cannot_be_re_chunked_is_refused(batch: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        set_batch_sequence_length(batch, 3, truncate=False)


def test_a_length_that_divides_needs_no_padding() -> None:
    tokens = torch.arange(16).view(2, 8)
    cut = set_batch_sequence_length({"input_ids": tokens}, 4, truncate=False)["input_ids"]
    assert torch.equal(cut, tokens.view(4, 4))
