"""Every label is counted once, with the probability that one plain forward pass gives it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from random_models import FixedLogits, random_model

from megatron_slw.evaluation.perplexity import Score, bits_per_byte, cover, score_stream


@pytest.mark.parametrize("length", range(1, 7))
def test_windows_score_each_label_once(length: int) -> None:
    for overlap in range(length):
        for labels in range(0, 23):
            windows = cover(labels, length, overlap)
            assert [i for w in windows for i in range(w.scored, w.stop)] == list(range(labels))
            for w in windows:
                assert 0 <= w.first <= w.scored < w.stop <= labels
                assert w.stop - w.first == min(length, labels)  # one shape, so that they batch
                assert w.first == 0 or w.scored - w.first >= overlap


@pytest.mark.parametrize(("length", "overlap"), [(0, 0), (4, 4), (4, -1)])
def test_impossible_windows_are_refused(length: int, overlap: int) -> None:
    with pytest.raises(ValueError, match="overlap"):
        cover(10, length, overlap)


def test_short_stream_equals_one_forward_pass(tmp_path: Path) -> None:
    model = random_model(tmp_path)
    ids = np.random.default_rng(0).integers(0, 300, 33).astype(np.uint16)
    with torch.no_grad():
        logits = model(torch.from_numpy(ids[None, :-1].astype(np.int64)))[0, :, :300]
    labels = torch.from_numpy(ids[1:].astype(np.int64))
    expected = float(torch.nn.functional.cross_entropy(logits.double(), labels, reduction="sum"))
    score = score_stream(model, ids, vocab_size=300, length=32)
    assert score.labels == 32
    assert score.nats == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("overlap", [0, 5, 31])
def test_long_stream_equals_window_by_window(tmp_path: Path, overlap: int) -> None:
    model = random_model(tmp_path)
    ids = np.random.default_rng(1).integers(0, 300, 110).astype(np.int32)
    expected = 0.0
    for window in cover(109, 32, overlap):
        inputs = torch.from_numpy(ids[None, window.first : window.stop].astype(np.int64))
        with torch.no_grad():
            logits = model(inputs)[0, :, :300]
        log_p = logits.double().log_softmax(-1)
        for position in range(window.scored, window.stop):
            expected -= float(log_p[position - window.first, ids[position + 1]])
    for batch in (1, 3, 64):
        score = score_stream(model, ids, vocab_size=300, length=32, overlap=overlap, batch=batch)
        assert score.labels == 109
        assert score.nats == pytest.approx(expected, rel=1e-6)


def test_documents_are_scored_as_in_training(tmp_path: Path) -> None:
    """Each part of a window that lies in one document costs what it costs alone, where the model begins anew there."""
    ids = np.random.default_rng(2).integers(0, 300, 81)
    starts = np.isin(np.arange(81), [0, 7, 8, 32, 40, 77])
    model = random_model(tmp_path, data__reset_position_ids=True, data__reset_attention_mask=True)
    expected = 0.0
    for first, stop in [(0, 7), (7, 8), (8, 32), (32, 40), (40, 64), (64, 77), (77, 80)]:
        length = stop - first  # windows of 32 labels, and a last one of 16
        expected += score_stream(model, ids[first : stop + 1], vocab_size=300, length=length).nats
    windows = [(0, 33), (32, 65), (64, 81)]
    found = [score_stream(model, ids[a:b], vocab_size=300, length=32, starts=starts[a:b]) for a, b in windows]
    assert sum(score.nats for score in found) == pytest.approx(expected, rel=1e-6)
    whole = score_stream(model, ids[:65], vocab_size=300, length=32, starts=starts[:65])
    assert whole.nats == pytest.approx(found[0].nats + found[1].nats, rel=1e-6)
    plain = random_model(tmp_path)
    with_starts = score_stream(plain, ids, vocab_size=300, length=32, starts=starts)
    assert with_starts == score_stream(plain, ids, vocab_size=300, length=32), "documents count for every model"


def test_padding_columns_get_no_probability() -> None:
    model = FixedLogits([0.0, 0.0, 0.0, 50.0])  # the fourth column is padding
    score = score_stream(model, [0, 1, 2, 1], vocab_size=3, length=8)
    assert score.loss == pytest.approx(math.log(3))
    assert score.perplexity == pytest.approx(3)


def test_unknown_id_is_refused_and_nothing_costs_nothing() -> None:
    model = FixedLogits([0.0, 0.0, 0.0, 0.0])
    with pytest.raises(ValueError, match=r"\[0, 3\)"):
        score_stream(model, [0, 3], vocab_size=3, length=8)
    assert score_stream(model, [], vocab_size=3, length=8) == Score(0.0, 0)
    assert score_stream(model, [1], vocab_size=3, length=8) == Score(0.0, 0)


def test_bits_per_byte() -> None:
    assert bits_per_byte(8 * math.log(2), 4) == pytest.approx(2.0)  # eight bits for four bytes
    with pytest.raises(ValueError, match="at least 1 byte"):
        bits_per_byte(1.0, 0)


def test_scores_add_up() -> None:
    assert Score(1.0, 2) + Score(3.0, 4) == Score(4.0, 6)
    assert Score(5000.0, 1).perplexity == math.inf
