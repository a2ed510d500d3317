"""A row costs the same on every layout, each label once, padding nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from random_models import random_model

from megatron_slw.config.schema import RunConfig
from megatron_slw.evaluation.rows import Row, batches_by_length, padded
from megatron_slw.evaluation.scoring import ScoredModel, score_rows
from megatron_slw.testing import WorkerPool, tiny_config
from tests.evaluation.scoring_jobs import argmax, score_with_engine, some_rows

LAYOUTS: list[tuple[int, dict[str, Any]]] = [
    (2, {"parallel": {"tensor": 2}}),
    (2, {"parallel": {"tensor": 2, "sequence_parallel": True}, "zero_stage": 1}),
    (2, {"parallel": {"pipeline": 2}}),
    (2, {"zero_stage": 3}),
    (4, {"parallel": {"tensor": 2, "pipeline": 2}, "zero_stage": 1}),
]
PARTS = ["reset_position_ids", "reset_attention_mask"]


def config_of(folder: Path, world: int = 1, resets: bool = False, **layout: Any) -> RunConfig:
    changes = {f"data__{name}": True for name in PARTS} if resets else {}
    std = 0.3  # some tokens are clearly more probable
    return tiny_config(folder, world_size=world, model__init_method_std=std, model__hidden_dropout=0.5,
                       **changes, **layout)  # fmt: skip


@pytest.mark.parametrize(("world", "layout"), LAYOUTS, ids=["tp2", "tp2-sp", "pp2", "dp2-zero3", "tp2-pp2"])
@pytest.mark.parametrize("resets", [False, True], ids=["plain", "documents"])
def test_scores_do_not_depend_on_the_layout(
    pool: WorkerPool, tmp_path: Path, world: int, layout: dict[str, Any], resets: bool
) -> None:
    if resets and world == 4:
        pytest.skip("tp2 and pp2 show it alone")
    (nats, greedy), *_ = pool.run(score_with_engine, 1, (config_of(tmp_path, resets=resets),))
    ranks = pool.run(score_with_engine, world, (config_of(tmp_path, world, resets, **layout),))
    assert 0 < greedy.sum() < len(greedy), "only one of two outcomes is compared"
    for found, right in ranks:
        if layout.get("parallel", {}).get("tensor") == 2:
            np.testing.assert_allclose(found, nats, rtol=2e-5)
        else:
            assert np.array_equal(found, nats), "the same batches give the same bits"
        assert np.array_equal(right, greedy)


def test_rows_equal_one_forward_pass_each(tmp_path: Path) -> None:
    model = random_model(tmp_path)
    config = tiny_config(tmp_path)
    rows = some_rows(300, 32)
    for tokens in (1, 64, 100_000):
        found = score_rows(ScoredModel.alone(model, config), rows, tokens)
        for row, nats, greedy in zip(rows, found.nats, found.greedy, strict=True):
            ids = torch.from_numpy(row.ids.astype(np.int64))
            with torch.no_grad():
                log_p = model(ids[None, :-1])[0, row.scored :, :300].double().log_softmax(-1)
            labels = ids[1 + row.scored :]
            assert nats == pytest.approx(-float(log_p.gather(1, labels[:, None]).sum()), rel=1e-5)
            assert greedy == bool((log_p.argmax(-1) == labels).all())


def test_argmax_over_ranks_takes_the_lowest_of_equal_tokens(pool: WorkerPool) -> None:
    generator = np.random.default_rng(1)
    logits = generator.integers(0, 4, (40, 7, 128)).astype(np.float32)
    logits[..., 100:] = 9.0  # padding must not win
    for vocab in (100, 50):  # with 50 the second rank holds padding alone
        for found in pool.run(argmax, 2, (logits, vocab)):
            assert np.array_equal(found, logits[..., :vocab].argmax(-1))


def test_every_row_is_in_one_batch_of_bounded_size() -> None:
    generator = np.random.default_rng(3)
    rows = [Row(np.zeros(n + 1, np.int64), 0) for n in generator.integers(1, 61, 200)]
    for tokens in (1, 100, 500):
        batches = batches_by_length(rows, tokens, 60)
        assert sorted(i for batch in batches for i in batch.rows) == list(range(200))
        assert all(batch.tokens <= tokens or len(batch.rows) == 1 for batch in batches)
        assert all(rows[i].labels <= batch.length <= min(60, 64) for batch in batches for i in batch.rows)
        assert [batch.length for batch in batches] == sorted((batch.length for batch in batches), reverse=True)
    assert all(batch.length % 24 == 0 for batch in batches_by_length(rows, 500, 72, multiple=3))


def test_filled_up_rows_keep_labels_and_documents() -> None:
    rows = [Row(np.array([5, 6, 7]), 1, np.array([1, 2])), Row(np.array([8, 9]), 0)]
    inputs, labels, counts, documents = padded(rows, 4)
    assert inputs.tolist() == [[5, 6, 0, 0], [8, 0, 0, 0]]
    assert labels.tolist() == [[6, 7, 0, 0], [9, 0, 0, 0]]
    assert counts.tolist() == [[False, True, False, False], [True, False, False, False]]
    assert documents.tolist() == [[1, 2, 2, 2], [0, 0, 0, 0]]


def test_rows_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    model = ScoredModel.alone(random_model(tmp_path), tiny_config(tmp_path))
    with pytest.raises(ValueError, match=r"\[0, 300\)"):
        score_rows(model, [Row(np.array([0, 300]), 0)])
    with pytest.raises(ValueError, match="33 tokens does not fit the model's length 32"):
        score_rows(model, [Row(np.zeros(34, np.int64), 0)])
