"""Does growing pay? A small GPT on the State of the Union addresses, grown in every way, each with three seeds.

    python benchmarks/growth_quality.py --work DIR [--json FILE] [--images DIR]

The target is trained from scratch for a fixed number of tokens; the mean of its last validation losses is what every
other way has to reach: from scratch with a length warmup, and grown from half the layers, half the width, half of
both, or twice by layers; with and without the warmup; with the optimizer's state grown exactly, as the published code
does it, or fresh. Compute is all FLOPs of training, the output layer and attention too, of all stages. Every chain is
trained in this process with the functions that pretrain_gpt.py and grow_checkpoint.py are made of.

A stage that is complete is not trained again, so the same command goes on after an interruption. Seconds are CPU
seconds of steps, measured apart, all sizes by turns (--timing).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

from benchmarks import growth_quality_arms as arms
from benchmarks.address_corpus import CACHE, DONE, addresses, prepare, write_json
from benchmarks.growth_quality_evaluation import Point, averaged, figures, summarize
from benchmarks.growth_quality_runs import Costs, Goal, curve, run_chain
from benchmarks.slw_quality_evaluation import without_nan
from megatron_slw.data.sidecar import file_sha256

TIMING = "timing.json"


def jobs(seeds: Sequence[int]) -> Iterator[tuple[str, arms.Chain]]:
    """Every arm's name and chain, the arms that matter most first, one seed after the other."""
    for wave in arms.WAVES:
        for seed in seeds:
            for arm in wave:
                yield arm.name, arm.chain(seed)


def goal_of(seed: int, work: Path) -> tuple[Goal, Point] | None:
    """What the others have to reach, and the baseline's last point; None while the baseline is not trained."""
    chain = arms.BASELINE.chain(seed)
    if not (work / "runs" / chain.name / DONE).is_file():
        return None
    points = curve(chain, work)
    loss = averaged([point.loss for point in points])[-1]
    return Goal(loss, arms.MOST_COMPUTE * points[-1].flops), points[-1]


def evaluate(work: Path, seeds: Sequence[int], costs: Costs | None) -> dict[str, Any]:
    """The figures of every arm, from the chains that are there."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for name, chain in jobs(seeds):
        goal = goal_of(chain.seed, work)
        if goal is None or not (work / "runs" / chain.name / DONE).is_file():
            print(f"{name}, seed {chain.seed}, is missing", file=sys.stderr)
            continue
        baseline = curve(arms.BASELINE.chain(chain.seed), work, costs)[-1]
        runs.setdefault(name, []).append(
            {"seed": chain.seed, **figures(curve(chain, work, costs), goal[0].loss, baseline)}
        )
    return {"arms": {name: summarize(found) for name, found in runs.items()}, "runs": runs}


def main(argv: list[str] | None = None) -> int:
    """Run what is left, evaluate, write."""
    args = parser().parse_args(argv)
    import torch

    torch.set_num_threads(1)
    work = args.work.resolve()
    prepare(work / "data", addresses(args.corpus), arms.VOCABULARY)
    if not args.evaluate_only:
        for name, chain in jobs(args.seeds):
            found = goal_of(chain.seed, work)
            print(f"{name:20} {run_chain(chain, work, found[0] if found else None)}", flush=True)
    timing = work / TIMING
    if args.timing:
        from benchmarks.growth_quality_timing import measure

        write_json(timing, measure(work))
    costs = json.loads(timing.read_text()) if timing.is_file() else None
    result = {
        "benchmark": "growth_quality", "machine": platform.processor() or platform.machine(), "cpus": os.cpu_count(),
        "torch": torch.__version__, "corpus_sha256": file_sha256(work / "data" / "train.jsonl"),
        "settings": arms.settings(), "step_costs": costs, **evaluate(work, args.seeds, costs),
    }  # fmt: skip
    if args.json:
        write_json(args.json, result)
    if args.images:
        from benchmarks.growth_quality_figures import draw

        draw(without_nan(result), args.images)
    return 0


def parser() -> argparse.ArgumentParser:
    """The flags."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = result.add_argument
    add("--work", type=Path, required=True, help="where corpus and runs go; about 2 MB a run")
    add("--corpus", type=Path, default=CACHE, help="a folder of .txt files (default: where the tests put them)")
    add("--seeds", type=int, nargs="+", default=list(arms.SEEDS), help="only these (default: all)")
    add("--evaluate-only", action="store_true", help="train nothing; evaluate the runs that are there")
    add("--timing", action="store_true", help="measure the seconds of steps, a minute; kept in --work")
    add("--json", type=Path, help="the results")
    add("--images", type=Path, help="a folder for the pictures")
    return result


if __name__ == "__main__":
    raise SystemExit(main())
