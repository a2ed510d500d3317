"""Validation: the mean loss over the first windows of the validation set, always at the full length."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from megatron_slw.config.schema import RunConfig
from megatron_slw.data.loader import Blocks, ValidLoader
from megatron_slw.train.engine import Engine


def validation_blocks(loader: ValidLoader, count: int, rows: int, dp_rank: int, dp_size: int) -> Iterator[Blocks]:
    """This rank's micro-batches over windows [0, count): equally many, of equal shape, on every rank.

    Window i is in batch i // (rows x dp_size). What is missing at the end is filled with the last window under a
    zero mask, so that the result is the mean over `count` windows exactly, on any layout.
    """
    stride = rows * dp_size
    for batch in range(-(-count // stride)):
        first = batch * stride + dp_rank * rows
        here = max(0, min(rows, count - first))
        read = loader.read(min(first, count - 1), max(here, 1))
        mask_BT = np.zeros((rows, read.tokens_BT.shape[1]), np.float32)
        mask_BT[:here] = 1.0
        starts_BT = None if read.starts_BT is None else _filled(read.starts_BT, rows)
        yield Blocks(_filled(read.tokens_BT, rows), _filled(read.labels_BT, rows), mask_BT, starts_BT)


def _filled(array_BT: np.ndarray, rows: int) -> np.ndarray:
    return np.concatenate([array_BT, np.repeat(array_BT[-1:], rows - len(array_BT), axis=0)])


def validation_loss(engine: Engine, loader: ValidLoader, config: RunConfig) -> float:
    """Mean negative log-likelihood in nats over `evaluation.samples` windows, or all if there are fewer."""
    windows = min(config.evaluation.samples, len(loader))
    groups, rows = engine.groups, config.micro_batch_size
    blocks = validation_blocks(loader, windows, rows, groups.dp_rank, groups.dp_size)
    return engine.evaluate(blocks, -(-windows // (rows * groups.dp_size)), windows * config.model.seq_length)
