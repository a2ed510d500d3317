"""Seconds of a training step of the model of slw_quality.py by its FLOPs, measured by turns in one thread.

They are CPU seconds of the process, which a busy machine changes far less than the clock on the wall. Medians over the
rounds.
"""

from __future__ import annotations

import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import slw_quality_arms as arms
from megatron_slw.config.load import resolve, with_vocab_size
from megatron_slw.data.loader import Blocks
from megatron_slw.model.init import initial_value
from megatron_slw.parallel.groups import build_groups
from megatron_slw.slw.plan import BatchStep
from megatron_slw.testing import single_process
from megatron_slw.train.engine import Engine
from megatron_slw.train.estimate import flops_per_token

LENGTHS = (8, 16, 32, 64, 96, 128)
ROUNDS = 15


def measure(work: Path) -> dict[str, Any]:
    """Measure steps of the baseline's batch at each length; every round goes through all of them."""
    torch.set_num_threads(1)
    config = resolve(arms.configuration(arms.STABILITY[0], 1, work / "data", work / "timing"))
    config = with_vocab_size(config, arms.VOCABULARY)
    generator = np.random.default_rng(0)
    times: dict[int, list[float]] = {length: [] for length in LENGTHS}
    with single_process():
        engine = Engine(config, build_groups(config.parallel), partial(initial_value, model=config.model, seed=1))
        for number in range(ROUNDS + 1):
            for length in LENGTHS:
                ids = generator.integers(0, arms.VOCABULARY, (arms.ROWS, length + 1), dtype=np.uint16)
                began = time.process_time()
                engine.train_step(Blocks(ids[:, :-1], ids[:, 1:]), BatchStep(0, length, arms.ROWS, 0, 0), 1e-4)
                if number:
                    times[length].append(time.process_time() - began)
    medians = {length: statistics.median(values) for length, values in times.items()}
    for length, seconds in medians.items():
        print(f"length {length:4}  {seconds * 1000:7.1f} ms  {arms.ROWS * length / seconds:8,.0f} tokens/s")
    costs = [(arms.ROWS * n * flops_per_token(config.model, n), seconds) for n, seconds in medians.items()]
    return {"costs": costs, "rounds": ROUNDS}
