"""Batches at another length: every tensor alike, the caller's batch untouched, numpy as torch."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

from megatron_slw.slw.functional import set_batch_sequence_length

ROWS, FULL = 3, 64
LIBRARIES = pytest.mark.parametrize("of", [torch.tensor, np.array], ids=["torch", "numpy"])


def batch_of(of: Any) -> dict[str, Any]:
    """Tokens that say where they stand: 1 + row * FULL + position; the rows end after 64, 40 and 5 positions."""
    tokens = 1 + np.arange(ROWS * FULL).reshape(ROWS, FULL)
    mask = (np.arange(FULL) < np.array([[64], [40], [5]])).astype(np.int64)
    return {
        "input_ids": of(tokens * mask),
        "attention_mask": of(mask),
        "labels": of(np.where(mask, tokens, -100)),
        "classes": of(np.arange(ROWS)),
        "source": "a file",
    }


@LIBRARIES
@pytest.mark.parametrize("length", [8, 64, 100])
def test_every_sequence_of_a_mapping_is_cut_and_nothing_else(of: Any, length: int) -> None:
    batch = batch_of(of)
    cut = set_batch_sequence_length(batch, length)
    new = min(length, FULL)
    for name in ("input_ids", "attention_mask", "labels"):
        assert tuple(cut[name].shape) == (ROWS, new) and (cut[name] == batch[name][:, :new]).all()
        assert tuple(batch[name].shape) == (ROWS, FULL), "the caller's batch was changed"
    assert cut["classes"] is batch["classes"] and cut["source"] == "a file"
    assert cut is not batch and list(cut) == list(batch)


@LIBRARIES
@pytest.mark.parametrize("kind", [tuple, list, namedtuple("Pair", "x y")._make])
def test_pairs_stay_of_their_kind(of: Any, kind: Any) -> None:
    tokens = of(np.arange(ROWS * (FULL + 1)).reshape(ROWS, FULL + 1))
    batch = kind([tokens[:, :-1], tokens[:, 1:]])
    x, y = cut = set_batch_sequence_length(batch, 8)
    assert type(cut) is type(batch) and tuple(x.shape) == tuple(y.shape) == (ROWS, 8)
    assert (x + 1 == y).all(), "a label no longer stands beside its input"


def test_a_cut_is_contiguous() -> None:
    """A view fails in the .view(-1) of a user's loss, and holds the memory of the whole batch."""
    (cut,) = set_batch_sequence_length((torch.zeros(ROWS, FULL),), 8)
    assert cut.is_contiguous() and cut.untyped_storage().nbytes() == ROWS * 8 * 4


@LIBRARIES
def test_masks_are_cut_in_both_dimensions_and_features_in_one(of: Any) -> None:
    square = np.tril(np.ones((ROWS, FULL, FULL), bool))
    batch = {
        "input_ids": of(np.zeros((ROWS, FULL), np.int64)),
        "mask": of(square.astype(np.float32)),
        "attention_bias": of(square[:, None].astype(np.float32)),
        "keys_mask": of(square[:, None, -1:]),
        "pairs": of(square),
        "inputs_embeds": of(np.zeros((ROWS, FULL, FULL), np.float32)),
    }
    shapes = {name: tuple(value.shape) for name, value in set_batch_sequence_length(batch, 8).items()}
    assert shapes == {
        "input_ids": (ROWS, 8),
        "mask": (ROWS, 8, 8),
        "attention_bias": (ROWS, 1, 8, 8),
        "keys_mask": (ROWS, 1, 1, 8),
        "pairs": (ROWS, 8, 8),
        "inputs_embeds": (ROWS, 8, FULL),
    }
    unnamed = set_batch_sequence_length(tuple(batch.values()), 8)
    wanted = {**shapes, "mask": (ROWS, 8, FULL)}  # floats of three dimensions without a name are features
    assert [tuple(value.shape) for value in unnamed][:3] == [wanted[name] for name in list(wanted)[:3]]


@LIBRARIES
def test_the_end_of_a_sequence_is_preserved_in_every_tensor(of: Any) -> None:
    batch = batch_of(of)
    cut = set_batch_sequence_length(batch, 8, preserve_end_of_sequence=True)
    columns = np.array([[*range(7), 63], [*range(7), 39], [*range(8)]])
    for name in ("input_ids", "attention_mask", "labels"):
        assert (np.asarray(cut[name]) == np.take_along_axis(np.asarray(batch[name]), columns, 1)).all(), name
        assert tuple(batch[name].shape) == (ROWS, FULL)
    assert (np.asarray(batch["input_ids"]) == np.asarray(batch_of(of)["input_ids"])).all(), "the caller's batch changed"


def test_the_end_of_one_row_is_not_written_into_the_caller_s_batch() -> None:
    """The first positions of a single row are contiguous, so that a copy made on demand is the original."""
    tokens = torch.arange(FULL)[None]
    (cut,) = set_batch_sequence_length([tokens], 8, preserve_end_of_sequence=True)
    assert cut[0].tolist() == [*range(7), 63] and torch.equal(tokens, torch.arange(FULL)[None])


@LIBRARIES
def test_a_mask_of_pairs_keeps_the_end_in_both_dimensions(of: Any) -> None:
    mask = np.arange(FULL * FULL).reshape(1, 1, FULL, FULL).repeat(2, 0)
    batch = {"input_ids": of(np.zeros((2, FULL), np.int64)), "mask": of(mask)}
    cut = np.asarray(set_batch_sequence_length(batch, 8, preserve_end_of_sequence=True)["mask"])
    kept = [*range(7), 63]
    assert (cut == mask[:, :, kept][:, :, :, kept]).all()


@pytest.mark.parametrize("options", [{}, {"preserve_end_of_sequence": True}, {"truncate": False}])
def test_shortest_then_longest(options: dict[str, Any]) -> None:
    """A batch after another keeps nothing of it: the second one is whole."""
    first, second = batch_of(torch.tensor), batch_of(torch.tensor)
    for batch in (first, second):
        del batch["classes"]
    assert set_batch_sequence_length(first, 8, **options)["input_ids"].shape[1] == 8
    whole = set_batch_sequence_length(second, FULL, **options)
    assert all(torch.equal(whole[name], second[name]) for name in ("input_ids", "attention_mask", "labels"))


@pytest.mark.parametrize("length", [8, 64])
@pytest.mark.parametrize("options", [{}, {"preserve_end_of_sequence": True}, {"truncate": False}])
@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_models_of_transformers_run_on_what_is_cut(family: str, options: dict[str, Any], length: int) -> None:
    torch.manual_seed(0)
    batch = {name: batch_of(torch.tensor)[name] for name in ("input_ids", "attention_mask", "labels")}
    cut = set_batch_sequence_length(batch, length, **options)
    vocabulary = ROWS * FULL + 1
    model: Any
    if family == "gpt2":
        config = GPT2Config(vocab_size=vocabulary, n_positions=FULL, n_embd=16, n_layer=1, n_head=2)
        config.bos_token_id = config.eos_token_id = None
        model = GPT2LMHeadModel(config)
    else:
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        model = BertForMaskedLM(BertConfig(vocab_size=vocabulary, max_position_embeddings=FULL, **sizes))
    output = model.eval()(**cut)
    assert output.logits.shape[:2] == cut["input_ids"].shape and cut["input_ids"].shape[1] == length
    assert torch.isfinite(output.loss)
    valid = cut["attention_mask"].bool()
    assert (cut["labels"][~valid] == -100).all() and torch.equal(cut["labels"][valid], cut["input_ids"][valid])


@pytest.mark.parametrize(
    ("batch", "length", "message"),
    [
        ({"x": torch.zeros(2, 8)}, 0, "above 0, but is 0"),
        ({"x": torch.zeros(2, 8)}, True, "above 0, but is True"),
        ({"x": torch.zeros(2, 8)}, 4.0, "above 0, but is 4.0"),
        (torch.zeros(2, 8), 4, "not a Tensor"),
        ({"x": torch.zeros(2)}, 4, "no sequences"),
        ((), 4, "no sequences"),
        (({"x": torch.zeros(2, 8)}, torch.zeros(2)), 4, "batch\\[0\\] is a dict of tensors"),
    ],
)
def test_what_is_no_batch_or_length_is_refused(batch: Any, length: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        set_batch_sequence_length(batch, length)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"attention_mask": torch.ones(2, 8, 8)}, "must be \\(rows, T\\)"),
        ({"x": torch.zeros(2, 8), "labels": torch.zeros(2, 7)}, "no common end"),
        ({"x": torch.zeros(2, 8), "mask": torch.zeros(1, 8, 8)}, "1 rows and others have 2"),
    ],
)
def test_ends_that_cannot_be_preserved_are_refused(batch: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        set_batch_sequence_length(batch, 4, preserve_end_of_sequence=True)


def test_whole_numbers_of_numpy_are_lengths() -> None:
    assert set_batch_sequence_length((np.zeros((2, 8)),), np.int64(4))[0].shape == (2, 4)  # type: ignore[arg-type]
