"""CPU seconds of a training step of each model of growth_quality.py at several lengths, all by turns in one thread."""

from __future__ import annotations

import statistics
import time
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks import growth_quality_arms as arms
from megatron_slw.config.load import resolve, with_vocab_size
from megatron_slw.data.loader import Blocks
from megatron_slw.model.init import initial_value
from megatron_slw.parallel.groups import build_groups
from megatron_slw.slw.plan import BatchStep
from megatron_slw.testing import single_process
from megatron_slw.train.engine import Engine
from megatron_slw.train.estimate import flops_per_token

LENGTHS = (8, 32, 64, 128)
ROUNDS = 9


def measure(work: Path) -> dict[str, list[tuple[int, float]]]:
    """By size, (FLOPs, median CPU seconds) of a step of each length."""
    generator = np.random.default_rng(0)
    times: dict[tuple[str, int], list[float]] = {}
    costs: dict[tuple[str, int], int] = {}
    with single_process():
        sizes = sorted({size for route in arms.ROUTES.values() for size in route})
        engines = {size: _engine(size, work) for size in sizes}
        for number in range(ROUNDS + 1):
            for (layers, hidden), engine in engines.items():
                for length in LENGTHS:
                    ids = generator.integers(0, arms.VOCABULARY, (arms.ROWS, length + 1), dtype=np.uint16)
                    began = time.process_time()
                    engine.train_step(Blocks(ids[:, :-1], ids[:, 1:]), BatchStep(0, length, arms.ROWS, 0, 0), 1e-4)
                    key = f"{layers}x{hidden}", length
                    costs[key] = arms.ROWS * length * flops_per_token(engine.config.model, length)
                    if number:
                        times.setdefault(key, []).append(time.process_time() - began)
    result: dict[str, list[tuple[int, float]]] = {}
    for (size, length), values in times.items():
        seconds = statistics.median(values)
        print(f"{size:5}  length {length:4}  {seconds * 1000:7.1f} ms  {arms.ROWS * length / seconds:8,.0f} tokens/s")
        result.setdefault(size, []).append((costs[size, length], seconds))
    return result


def _engine(size: tuple[int, int], work: Path) -> Engine:
    chain = arms.Chain(1, False, (arms.Stage(*size, 1e-3),))
    config = with_vocab_size(resolve(arms.configuration(chain, work / "data", work / "timing")), arms.VOCABULARY)
    return Engine(config, build_groups(config.parallel), partial(initial_value, model=config.model, seed=1))
