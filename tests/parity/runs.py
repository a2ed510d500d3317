"""The run that every layout must repeat: synthetic tokens, lengths that go up and down, gradient accumulation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from megatron_slw.config.schema import RunConfig
from megatron_slw.model.init import initial_value
from megatron_slw.parallel.groups import build_groups
from megatron_slw.parallel.sharding import Shard, sharded_parameters
from megatron_slw.slw.compile import compile_plan
from megatron_slw.slw.plan import BatchStep
from megatron_slw.train.engine import Engine


@dataclass(frozen=True)
class SyntheticBlocks:
    """Stands for the loader's Blocks."""

    tokens_BT: np.ndarray
    labels_BT: np.ndarray
    loss_mask_BT: np.ndarray | None = None
    starts_BT: np.ndarray | None = None


def synthetic_blocks(step: BatchStep, vocab_size: int, dp_rank: int, dp_size: int) -> SyntheticBlocks:
    """This rank's rows of a batch that depends on the step's number alone."""
    generator = np.random.default_rng(step.step)
    ids = generator.integers(0, vocab_size, (step.rows, 1 + step.seq_len), dtype=np.uint16)
    starts = generator.random((step.rows, step.seq_len)) < 0.2  # read only where documents are tracked
    share = step.rows // dp_size
    mine = slice(dp_rank * share, (dp_rank + 1) * share)
    return SyntheticBlocks(ids[mine, :-1], ids[mine, 1:], starts_BT=starts[mine])


Pieces = list[tuple[Shard, np.ndarray]]


def train(config: RunConfig, learning_rate: float) -> tuple[list[float], list[float], float, Pieces]:
    """Train the whole plan on this rank: losses, gradient norms, an evaluation, and this rank's final weights."""
    groups = build_groups(config.parallel)
    seed = config.training.seed
    engine = Engine(config, groups, partial(initial_value, model=config.model, seed=seed))
    plan = compile_plan(config)
    losses, norms = [], []
    for number in range(plan.total_steps):
        step = plan.at(number)
        blocks = synthetic_blocks(step, config.model.vocab_size, groups.dp_rank, groups.dp_size)
        result = engine.train_step(blocks, step, learning_rate)
        losses.append(result.loss)
        norms.append(result.grad_norm)
        if number == 5:
            valid = evaluate(engine, config, groups)
    pieces = []
    for shard, param in sharded_parameters(engine.ds.module):
        with _whole(param, config.zero_stage):
            pieces.append((shard, param.detach().float().cpu().numpy().copy()))
    return losses, norms, valid, pieces


def evaluate(engine: Engine, config: RunConfig, groups) -> float:
    """A full-length evaluation between two short training steps."""
    step = BatchStep(10**6, config.model.seq_length, 8, 0, 0)
    mine = synthetic_blocks(step, config.model.vocab_size, groups.dp_rank, groups.dp_size)
    rows = config.micro_batch_size
    cut = [
        SyntheticBlocks(mine.tokens_BT[i : i + rows], mine.labels_BT[i : i + rows], None, mine.starts_BT[i : i + rows])
        for i in range(0, len(mine.tokens_BT), rows)
    ]
    return engine.evaluate(cut, len(cut), labels=8 * step.seq_len)


def _whole(param: torch.nn.Parameter, zero_stage: int):
    import contextlib

    import deepspeed

    return deepspeed.zero.GatheredParameters([param]) if zero_stage == 3 else contextlib.nullcontext()


def assemble(pieces_by_rank: list[Pieces]) -> dict[str, np.ndarray]:
    """The logical tensors from every rank's blocks; copies must agree bit for bit."""
    out: dict[str, np.ndarray] = {}
    seen: dict[tuple[str, int], np.ndarray] = {}
    for pieces in pieces_by_rank:
        for shard, block in pieces:
            assert block.shape == shard.local_shape, f"{shard}: block of shape {block.shape}"
            first = seen.setdefault((shard.name, shard.start), block)
            assert np.array_equal(first, block), f"{shard.name}: ranks disagree on their copy"
            whole = out.setdefault(shard.name, np.full(shard.shape, np.nan, np.float32))
            if shard.dim is None:
                whole[...] = block
            else:
                where = [slice(None)] * whole.ndim
                where[shard.dim] = slice(shard.start, shard.stop)
                whole[tuple(where)] = block
    assert not any(np.isnan(t).any() for t in out.values()), "a block of some tensor is on no rank"
    return out


def train_in_chunks(config: RunConfig, learning_rate: float) -> tuple[list[float], list[float], float, Pieces]:
    """`train` with a few rows of logits at a time, so that each micro-batch is several chunks."""
    from unittest import mock

    from megatron_slw.ops import choice

    with mock.patch.dict(choice.LOSS_CHUNK, cpu=11 * 384 * 4):
        return train(config, learning_rate)
