"""Every label is counted once, with the probability that one plain forward pass gives it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from random_models import FixedLogits, random_model
from torch import nn

from megatron_slw.evaluation.perplexity import Score, bits_per_byte
from megatron_slw.evaluation.rows import cover, stream_rows
from megatron_slw.evaluation.scoring import ScoredModel, score_rows
from megatron_slw.testing import tiny_config


def cost(
    model: nn.Module, folder: Path, ids: np.ndarray, starts: np.ndarray | None = None, stride: int = 32, **changes: Any
) -> float:
    """Nats of a stream under a model of length 32."""
    config = tiny_config(folder, **changes)
    return float(score_rows(ScoredModel.alone(model, config), stream_rows(ids, 32, stride, starts)).nats.sum())


@pytest.mark.parametrize("length", range(1, 7))
def test_windows_score_each_label_once(length: int) -> None:
    for stride in range(1, length + 1):
        for labels in range(0, 23):
            windows = cover(labels, length, stride)
            assert [i for w in windows for i in range(w.scored, w.stop)] == list(range(labels))
            for w in windows:
                assert 0 <= w.first <= w.scored < w.stop <= labels
                assert w.stop - w.first == min(length, labels)  # one shape, so that they batch
                assert w.first == 0 or w.scored - w.first >= length - stride


@pytest.mark.parametrize(("length", "stride"), [(0, None), (4, 0), (4, 5)])
def test_impossible_windows_are_refused(length: int, stride: int | None) -> None:
    with pytest.raises(ValueError, match="stride"):
        cover(10, length, stride)


@pytest.mark.parametrize("stride", [32, 27, 1])
def test_long_stream_equals_window_by_window(tmp_path: Path, stride: int) -> None:
    model = random_model(tmp_path)
    ids = np.random.default_rng(1).integers(0, 300, 110).astype(np.uint16)
    expected = 0.0
    for window in cover(109, 32, stride):
        inputs = torch.from_numpy(ids[None, window.first : window.stop].astype(np.int64))
        with torch.no_grad():
            logits = model(inputs)[0, :, :300]
        log_p = logits.double().log_softmax(-1)
        for position in range(window.scored, window.stop):
            expected -= float(log_p[position - window.first, ids[position + 1]])
    rows = stream_rows(ids, 32, stride)
    assert sum(row.counted for row in rows) == 109
    assert cost(model, tmp_path, ids, stride=stride) == pytest.approx(expected, rel=1e-6)


def test_documents_are_scored_as_in_training(tmp_path: Path) -> None:
    """Each part of a window that lies in one document costs what it costs alone, where the model begins anew there."""
    ids = np.random.default_rng(2).integers(0, 300, 81)
    starts = np.isin(np.arange(81), [0, 7, 8, 32, 40, 77])
    resets = {"data__reset_position_ids": True, "data__reset_attention_mask": True}
    model = random_model(tmp_path, **resets)
    alone = [(0, 7), (7, 8), (8, 32), (32, 40), (40, 64), (64, 77), (77, 80)]  # windows of 32 labels, a last of 16
    expected = sum(cost(model, tmp_path, ids[first : stop + 1], **resets) for first, stop in alone)
    windows = [(0, 33), (32, 65), (64, 81)]
    found = [cost(model, tmp_path, ids[a:b], starts[a:b], **resets) for a, b in windows]
    assert sum(found) == pytest.approx(expected, rel=1e-6)
    whole = cost(model, tmp_path, ids[:65], starts[:65], **resets)
    assert whole == pytest.approx(found[0] + found[1], rel=1e-6)
    plain = random_model(tmp_path)
    assert cost(plain, tmp_path, ids, starts) == cost(plain, tmp_path, ids), "documents count for every model"


def test_padding_columns_get_no_probability(tmp_path: Path) -> None:
    model = FixedLogits([0.0, 0.0, 0.0, *[50.0] * 125])  # from the fourth column on it is padding
    nats = cost(model, tmp_path, np.array([0, 1, 2, 1]), model__vocab_size=3)
    assert Score(nats, 3).loss == pytest.approx(math.log(3))
    assert Score(nats, 3).perplexity == pytest.approx(3)


def test_nothing_costs_nothing(tmp_path: Path) -> None:
    for ids in ([], [1]):
        assert cost(random_model(tmp_path), tmp_path, np.array(ids, np.int64)) == 0.0


def test_bits_per_byte() -> None:
    assert bits_per_byte(8 * math.log(2), 4) == pytest.approx(2.0)  # eight bits for four bytes
    with pytest.raises(ValueError, match="at least 1 byte"):
        bits_per_byte(1.0, 0)


def test_scores_add_up() -> None:
    assert Score(1.0, 2) + Score(3.0, 4) == Score(4.0, 6)
    assert Score(5000.0, 1).perplexity == math.inf
