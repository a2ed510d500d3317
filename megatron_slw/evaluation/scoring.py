"""What rows of tokens cost under a model, on any layout; each rank gets all results.

Batches are the same on every layout and are dealt out to the data-parallel ranks in turn; the results of a row are one
rank's, so that adding them up in the order of the rows gives the same figure whoever worked them out.

Shapes: B rows of a batch, T tokens of a row, V vocabulary columns of this rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from megatron_slw.config.schema import RunConfig
from megatron_slw.evaluation.rows import Batch, Row, batches_by_length, padded
from megatron_slw.model.forward import Forward, forward_of
from megatron_slw.model.head import operators_of
from megatron_slw.parallel.cross_entropy import vocab_parallel_argmax, vocab_parallel_cross_entropy
from megatron_slw.parallel.groups import Groups, one_process_groups

OnBatch = Callable[[int, int], None]
"""Told of the tokens done and of all tokens."""


@dataclass(frozen=True, eq=False)
class RowScores:
    """Of each row, in order."""

    nats: np.ndarray
    """Sum of -log p over the labels that count, float64, shape (rows,)."""
    greedy: np.ndarray
    """Whether each of these labels is the most probable token at its place, bool, shape (rows,)."""


@dataclass(frozen=True)
class ScoredModel:
    """A model that is only run forward, dropout off, as this rank sees it."""

    forward: Forward
    config: RunConfig
    """With model.vocab_size; the layout in it is not read, but for sequence parallelism."""
    groups: Groups

    @classmethod
    def alone(cls, model: nn.Module, config: RunConfig) -> ScoredModel:
        """The whole of a model in this process."""
        groups = one_process_groups(str(next(model.parameters()).device))
        return cls(forward_of(model, config, groups), config, groups)


@torch.no_grad()
def score_rows(
    model: ScoredModel, rows: Sequence[Row], batch_tokens: int | None = None, on_batch: OnBatch | None = None
) -> RowScores:
    """Score every row; collective, with equal arguments on all ranks.

    Args:
        model: what to score with.
        rows: none longer than the model's full length.
        batch_tokens: that go through the model at once; None is those of a micro-batch in training.
        on_batch: called after each of this rank's batches.

    Raises:
        ValueError: an id is not in the model's vocabulary, or a row is too long.
    """
    config, groups = model.config, model.groups
    longest = config.model.seq_length
    check_rows(rows, longest, _vocab_size(config))
    unit = groups.tp_size if config.parallel.sequence_parallel else 1
    tokens = batch_tokens or config.micro_batch_size * longest
    batches = batches_by_length(rows, tokens, longest, unit)
    found = torch.zeros(2, len(rows), dtype=torch.float64)
    total, done = sum(batch.tokens for batch in batches), 0
    for first in range(0, len(batches), groups.dp_size):
        place = first + groups.dp_rank
        # ZeRO-3 gathers weights over the data-parallel ranks: one without a batch of its own repeats the last.
        batch = batches[min(place, len(batches) - 1)]
        values = _score_batch(model, [rows[i] for i in batch.rows], batch)
        if values is not None and groups.tp_rank == 0 and place < len(batches):
            found[:, list(batch.rows)] = values.cpu()
        done += sum(b.tokens for b in batches[first : first + groups.dp_size])
        if on_batch is not None:
            on_batch(done, total)
    if groups.world_size > 1:  # one rank has a row's results, the others have zeros
        shared = found.to(groups.device)
        dist.all_reduce(shared)
        found = shared.cpu()
    return RowScores(found[0].numpy(), found[1].numpy() == 1.0)


def check_rows(rows: Sequence[Row], longest: int, vocab_size: int) -> None:
    """Refuse what the model cannot read; ValueError."""
    for row in rows:
        if not 1 <= row.labels <= longest:
            raise ValueError(f"a row of {row.labels} tokens does not fit the model's length {longest}")
        if not 0 <= int(row.ids.min()) <= int(row.ids.max()) < vocab_size:
            raise ValueError(
                f"token ids {row.ids.min()} to {row.ids.max()} are not all in the model's [0, {vocab_size})"
            )


def _vocab_size(config: RunConfig) -> int:
    if config.model.vocab_size is None:
        raise ValueError("scoring needs model.vocab_size: fill it from the dataset first")
    return config.model.vocab_size


def _score_batch(model: ScoredModel, rows: Sequence[Row], batch: Batch) -> Tensor | None:
    """Nats, and 1.0 where all is greedy, of each row: (2, rows) fp64; None on all stages but the last."""
    config, groups = model.config, model.groups
    inputs, labels, counts, documents = (torch.from_numpy(array) for array in padded(rows, batch.length))
    documents_BT = documents.to(groups.device) if config.data.track_documents else None
    logits_BTV = model.forward(inputs.to(groups.device), documents_BT)
    if logits_BTV is None:
        return None
    labels_BT, counts_BT = labels.to(groups.device), counts.to(groups.device)
    sizes = (_vocab_size(config), config.model.padded_vocab_size)
    best_BT = vocab_parallel_argmax(logits_BTV, *sizes, groups)
    nats_BT = vocab_parallel_cross_entropy(logits_BTV, labels_BT, *sizes, groups, operators_of(config, groups))
    nats_B = (nats_BT.double() * counts_BT).sum(dim=1)
    return torch.stack([nats_B, ((best_BT == labels_BT) | ~counts_BT).all(dim=1).double()])
