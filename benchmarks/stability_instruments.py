"""What the stability instruments cost, as a share of the training step, on the quickstart's grown model and two ranks.

    python benchmarks/stability_instruments.py [--json FILE]

Two CPU processes train the quickstart's configuration on random tokens. After each step the instruments run, timed
apart: sqrt(v) of the optimizer with its gather, the windows of the loss and the gradient norm, the FLOPs. Times are CPU
time of a rank, which a busy machine does not lengthen as it does wall time; both are printed. Figures are medians over
the steps at the shortest and at the full length of the warmup. For the whole run each step counts with its length, its
time taken as linear between the two.
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
import torch.distributed as dist

from megatron_slw.config.load import load_config, with_vocab_size
from megatron_slw.config.schema import RunConfig
from megatron_slw.data.loader import Blocks
from megatron_slw.model.init import initial_value
from megatron_slw.parallel.groups import build_groups
from megatron_slw.slw.compile import compile_plan
from megatron_slw.slw.plan import Plan
from megatron_slw.slw.stability import Stability
from megatron_slw.testing import WorkerPool
from megatron_slw.train.engine import Engine
from megatron_slw.train.engine_state import ensure_optimizer_state
from megatron_slw.train.estimate import plan_flops
from megatron_slw.train.optimizer_statistics import variance_sqrt

QUICKSTART = Path(__file__).parents[1] / "examples" / "quickstart" / "ds_slw.json"
RANKS, VOCABULARY = 2, 8192
Clocks = tuple[float, float]
Times = list[tuple[Clocks, Clocks]]


def train(config: RunConfig, first: int, steps: int) -> Times:
    """CPU and wall seconds of each step, and of the instruments after it, on this rank."""
    torch.set_num_threads(1)
    groups, plan = build_groups(config.parallel), compile_plan(config)
    engine = Engine(config, groups, partial(initial_value, model=config.model, seed=1))
    ensure_optimizer_state(engine)
    generator = np.random.default_rng(groups.dp_rank)
    stability, times = Stability(), []
    for number in range(first, first + steps + 2):
        step = plan.at(number)
        shape = step.rows // groups.dp_size, step.seq_len + 1
        ids = generator.integers(0, VOCABULARY, shape, dtype=np.uint16)
        dist.barrier()
        began = _clocks()
        result = engine.train_step(Blocks(ids[:, :-1], ids[:, 1:]), step, 1e-4)
        dist.barrier()  # the ranks wait for each other somewhere: not in the instruments' share
        trained = _clocks()
        variance_sqrt(engine)
        stability = stability.after(result.loss, result.grad_norm)
        plan_flops(config.model, plan, number + 1)
        done = _clocks()
        times.append((_between(began, trained), _between(trained, done)))
    return times[2:]


def _clocks() -> Clocks:
    return time.process_time(), time.perf_counter()


def _between(first: Clocks, second: Clocks) -> Clocks:
    return second[0] - first[0], second[1] - first[1]


def medians(by_rank: list[Times]) -> dict[str, float]:
    """Milliseconds, over the steps of all ranks."""
    found: dict[str, float] = {}
    for clock, name in enumerate(("cpu", "wall")):
        steps = [step[clock] for times in by_rank for step, _ in times]
        after = [after[clock] for times in by_rank for _, after in times]
        found |= {f"step_{name}_ms": 1e3 * statistics.median(steps)}
        found |= {f"instruments_{name}_ms": 1e3 * statistics.median(after)}
        found |= {f"share_{name}": statistics.median(a / s for a, s in zip(after, steps, strict=True))}
    return found


def whole_run(plan: Plan, by_length: dict[int, dict[str, float]]) -> float:
    """Share of the run's CPU time."""
    lengths = [plan.at(step).seq_len for step in range(plan.total_steps)]
    total = {
        part: np.interp(lengths, list(by_length), [found[f"{part}_cpu_ms"] for found in by_length.values()]).sum()
        for part in ("step", "instruments")
    }
    return float(total["instruments"] / (total["step"] + total["instruments"]))


def main(argv: list[str] | None = None) -> int:
    """Print the table; write it as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    config = with_vocab_size(load_config(str(QUICKSTART), ["--model.num_layers=4"], RANKS), VOCABULARY)
    pool = WorkerPool()
    plan, by_length = compile_plan(config), {}
    for first in (0, config.training.train_steps - args.steps - 2):
        by_length[plan.at(first).seq_len] = medians(pool.run(train, RANKS, (config, first, args.steps)))
    pool.close()
    result = {
        "benchmark": "stability_instruments", "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__, "ranks": RANKS, "steps": args.steps, "by_length": by_length,
        "share_of_the_run_cpu": whole_run(plan, by_length),
    }  # fmt: skip
    for length, found in by_length.items():
        for clock in ("cpu", "wall"):
            step, after = (found[f"{part}_{clock}_ms"] for part in ("step", "instruments"))
            share = f"share {found[f'share_{clock}']:.2%}"
            print(f"length {length:4d}  {clock:4s}  step {step:7.1f} ms   instruments {after:5.2f} ms   {share}")
    print(f"whole run: {result['share_of_the_run_cpu']:.2%} of its CPU time")
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
