"""Tokens per second of a training step at each length of a warmup, merged micro-batches beside unmerged ones.

    python benchmarks/short_sequences.py [--json FILE]

One CPU process. The same rows at every length, so a short step has few tokens; what counts is tokens per second next to
the full length's, and seconds per FLOP next to its (1 is a step exactly as much cheaper as it computes less). Both
engines take turns on the same tokens; medians.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

from megatron_slw.data.loader import Blocks
from megatron_slw.model.init import initial_value
from megatron_slw.parallel.groups import build_groups
from megatron_slw.slw.batching import micro_batching
from megatron_slw.slw.plan import BatchStep
from megatron_slw.testing import single_process, tiny_config
from megatron_slw.train.engine import Engine
from megatron_slw.train.estimate import flops_per_token


def make_engine(full: int, rows: int, micro: int, merge: bool) -> Engine:
    """A 6-layer model 384 wide; its optimizer step is part of what is timed."""
    changes = {} if merge else {"training__micro_batch_tokens": 1}
    config = tiny_config(
        "unused", model__num_layers=6, model__hidden_size=384, model__num_attention_heads=6, model__seq_length=full,
        model__vocab_size=8192, curriculum=None, train_batch_size=rows, micro_batch_size=micro, optimizer__lr=1e-4,
        **changes,
    )  # fmt: skip
    return Engine(config, build_groups(config.parallel), partial(initial_value, model=config.model, seed=1))


def seconds(engine: Engine, ids: np.ndarray) -> float:
    """One training step on (rows, length + 1) token ids."""
    step = BatchStep(0, ids.shape[1] - 1, len(ids), 0, 0)
    began = time.perf_counter()
    engine.train_step(Blocks(ids[:, :-1], ids[:, 1:]), step, 1e-4)
    return time.perf_counter() - began


def main(argv: list[str] | None = None) -> int:
    """Print the table; write it as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", type=int, default=256)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--micro", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    lengths = [n for n in (8, 16, 32, 64, 128, 256, 512, 1024) if n <= args.full]
    generator = np.random.default_rng(0)
    rates: dict[str, dict[int, float]] = {"merged": {}, "unmerged": {}}
    with single_process():
        engines = {name: make_engine(args.full, args.rows, args.micro, name == "merged") for name in rates}
        for length in lengths:
            ids = generator.integers(0, 8192, (args.rows, length + 1), dtype=np.uint16)
            times: dict[str, list[float]] = {name: [] for name in engines}
            for turn in range(args.rounds + 1):
                for name, engine in engines.items():
                    taken = seconds(engine, ids)
                    if turn:  # the first is a warm-up
                        times[name].append(taken)
            for name, values in times.items():
                rates[name][length] = args.rows * length / statistics.median(values)
            batching = micro_batching(engines["merged"].config, length)
            shown = "  ".join(f"{name} {rate[length]:8,.0f} tokens/s" for name, rate in rates.items())
            print(f"length {length:5d}  {shown}   merged into {batching.parts} x {batching.rows} rows", flush=True)
    model = engines["merged"].config.model
    per_flop = {
        name: {
            n: rate[lengths[-1]] * flops_per_token(model, lengths[-1]) / (rate[n] * flops_per_token(model, n))
            for n in rate
        }
        for name, rate in rates.items()
    }
    for name, values in per_flop.items():
        print(f"{name:8} seconds per FLOP: " + "  ".join(f"{n}: {v:.2f}" for n, v in values.items()))
    flatness = {name: rate[lengths[0]] / rate[lengths[-1]] for name, rate in rates.items()}
    print(f"length {lengths[0]} / length {lengths[-1]}: " + ", ".join(f"{n} {v:.2f}" for n, v in flatness.items()))
    if args.json:
        result = {
            "benchmark": "short_sequences", "machine": platform.processor() or platform.machine(),
            "torch": torch.__version__, **{k: v for k, v in vars(args).items() if k != "json"},
            "tokens_per_s": rates, "shortest_over_full": flatness, "seconds_per_flop_over_full": per_flop,
        }  # fmt: skip
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
