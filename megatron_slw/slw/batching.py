"""How a step's rows are cut into micro-batches: more rows in each while sequences are short.

With a fixed number of rows a micro-batch of short sequences is too little work for its fixed cost (kernel launches,
reading all weights): at length 8 the throughput falls to a third of that at length 256. So accumulation micro-batches
are merged up to a token budget. The global batch, and so the gradient, stays what it was.
"""

from __future__ import annotations

from typing import NamedTuple

from megatron_slw.config.schema import RunConfig

OVERHEAD_TOKENS = 256
"""The fixed cost of one micro-batch, as the number of tokens that take as long."""


class MicroBatching(NamedTuple):
    """How one replica works through its rows of a step."""

    rows: int
    """Rows of a micro-batch on one data-parallel rank."""
    parts: int
    """Micro-batches of the step."""


def micro_batching(config: RunConfig, seq_len: int, step_rows: int | None = None) -> MicroBatching:
    """Merge as many accumulation micro-batches as help, and the token budget allows.

    A step of m micro-batches on p pipeline stages takes m + p - 1 times the cost of one (1F1B, arXiv 2104.04473,
    section 2.2.1), and one of them costs OVERHEAD_TOKENS plus its tokens. Of the divisors of the accumulation steps
    whose merged micro-batches fit the budget, the one with the least total is taken; of equals the largest number of
    micro-batches. Without pipelining that is as few micro-batches as the budget allows.

    Args:
        config: `training.micro_batch_tokens` is the budget; never fewer rows than the configured micro-batch, but
            where a batch-size warmup has steps that it does not divide.
        seq_len: of the step.
        step_rows: its rows over all replicas; None is train_batch_size.
    """
    replica = (step_rows or config.train_batch_size) // config.data_parallel_size
    rows = max(n for n in range(1, min(config.micro_batch_size, replica) + 1) if replica % n == 0)
    steps, stages = replica // rows, config.parallel.pipeline
    budget = micro_batch_tokens(config)
    merges = [1, *(n for n in range(2, steps + 1) if steps % n == 0 and n * rows * seq_len <= budget)]

    def cost(merge: int) -> int:
        return (steps // merge + stages - 1) * (OVERHEAD_TOKENS + merge * rows * seq_len)

    best = min(merges, key=lambda merge: (cost(merge), merge))
    return MicroBatching(rows * best, steps // best)


def micro_batch_tokens(config: RunConfig) -> int:
    """The token budget of a micro-batch: the user's, or what the configured micro-batch has at full length."""
    budget = config.training.micro_batch_tokens
    return config.micro_batch_size * config.model.seq_length if budget is None else budget
