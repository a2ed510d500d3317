"""What the layout tests of scoring run on each rank."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from megatron_slw.config.schema import ParallelConfig, RunConfig
from megatron_slw.evaluation.job import Request, evaluate
from megatron_slw.evaluation.rows import Row, stream_rows
from megatron_slw.evaluation.scoring import ScoredModel, score_rows
from megatron_slw.model.init import initial_value
from megatron_slw.parallel.cross_entropy import vocab_parallel_argmax
from megatron_slw.parallel.groups import build_groups
from megatron_slw.parallel.launch import Launch
from megatron_slw.parallel.sharding import shard_range
from megatron_slw.train.engine import Engine


def some_rows(vocab_size: int, length: int) -> list[Row]:
    """Of every length, some with few labels that count, and a stream with a stride, in documents.

    One context comes with every token there is as its last: just one of them is the most probable.
    """
    generator = np.random.default_rng(5)
    context = generator.integers(0, vocab_size, 6)
    same = [Row(np.append(context, token), 5) for token in range(vocab_size)]
    rows = [Row(generator.integers(0, vocab_size, n + 1), n // 2) for n in range(1, length + 1, 3)]
    ids, starts = generator.integers(0, vocab_size, 3 * length), generator.random(3 * length) < 0.1
    return rows + same + stream_rows(ids, length, length // 2, starts)


def score_with_engine(config: RunConfig) -> tuple[np.ndarray, np.ndarray]:
    """Nats and greedy of `some_rows` by a training engine with initial weights."""
    groups = build_groups(config.parallel)
    engine = Engine(config, groups, partial(initial_value, model=config.model, seed=config.training.seed))
    rows = some_rows(config.model.vocab_size or 0, config.model.seq_length)
    with engine.evaluating() as forward:
        found = score_rows(ScoredModel(forward, config, groups), rows)
    assert engine.ds.module.training, "dropout stays off"
    return found.nats, found.greedy


def argmax(logits: np.ndarray, vocab_size: int) -> np.ndarray:
    """Of logits of which each of two ranks holds some columns."""
    groups = build_groups(ParallelConfig(tensor=2))
    start, stop = shard_range(logits.shape[-1], groups.tp_rank, 2)
    mine: Tensor = torch.from_numpy(logits[..., start:stop].copy())
    return vocab_parallel_argmax(mine, vocab_size, logits.shape[-1], groups).numpy()


def evaluate_on_rank(request: Request) -> dict[str, Any]:
    """What tools/evaluate.py gives to each rank."""
    rank = dist.get_rank()
    return evaluate(request, Launch(rank, dist.get_world_size(), rank, is_launched=True))
