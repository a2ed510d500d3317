"""Does sequence-length warmup pay? A small GPT on the State of the Union addresses, every arm with three seeds.

    python benchmarks/slw_quality.py --work DIR [--jobs 2] [--json FILE] [--images DIR]

Two studies, set down in slw_quality_arms.py. Stability: at a learning rate that is too high for the full length, the
baseline, the warmup, two stages, batch-size warmup and mixed lengths train equally many tokens; beside them the full
length at a rate that suits it. Epoch: what becomes of the tokens that short lengths cut off, in one pass over a corpus
that is all there is.

Every run is a pretrain_gpt.py of its own, of one thread. A run that is complete is not run again, so the same command
goes on after an interruption. On a shared machine wall-clock time means little: seconds are CPU seconds of a step of
that many tokens, measured apart, all lengths by turns (--timing); evaluation is not in them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

from benchmarks import slw_quality_arms as arms
from benchmarks.address_corpus import CACHE, DONE, ROOT, addresses, prepare, write_json
from benchmarks.slw_quality_evaluation import run_figures, summarize, without_nan
from megatron_slw.data.sidecar import file_sha256
from megatron_slw.train.metrics import FILE_NAME, read_metrics

ENVIRONMENT = (
    "OMP_NUM_THREADS=1", "CUDA_VISIBLE_DEVICES=", "DS_ACCELERATOR=cpu", f"PYTHONPATH={ROOT}",
    # glibc keeps large blocks from step to step instead of giving them back to the kernel
    "MALLOC_ARENA_MAX=1", "MALLOC_MMAP_MAX_=0", "MALLOC_TRIM_THRESHOLD_=8589934592", "MALLOC_TOP_PAD_=67108864",
)  # fmt: skip
TIMING = "timing.json"


@dataclass(frozen=True)
class Job:
    """One run."""

    arm: arms.Arm
    seed: int
    folder: Path

    @property
    def name(self) -> str:
        """arm and seed."""
        return f"{self.arm.study}/{self.arm.name}_{self.seed}"


def is_done(job: Job, config: Mapping[str, Any]) -> bool:
    """Whether the run was made with this very configuration."""
    path = job.folder / DONE
    return path.is_file() and json.loads(path.read_text())["config"] == config


def run(job: Job, data: Path) -> str:
    """Train unless it is done; a run that fails after its first evaluation counts: it is one that diverged."""
    config = arms.configuration(job.arm, job.seed, data, job.folder)
    if is_done(job, config):
        return f"{job.name}: done before"
    shutil.rmtree(job.folder, ignore_errors=True)  # a run of another configuration, or one that was killed
    script, file = ROOT / "pretrain_gpt.py", job.folder / "ds_slw.json"
    write_json(file, config)
    began = time.monotonic()
    command = ["env", *ENVIRONMENT, sys.executable, str(script), "--ds-config", str(file)]
    with (job.folder / "log").open("w") as log:
        status = subprocess.run(command, stdout=log, stderr=log).returncode
    steps, evaluations = read_metrics(job.folder / FILE_NAME) if (job.folder / FILE_NAME).is_file() else ([], [])
    if not evaluations:
        raise SystemExit(f"{job.name} failed: see {job.folder / 'log'}")
    if status == 0 and evaluations[-1]["step"] != steps[-1]["step"]:
        raise SystemExit(f"{job.name} was stopped before its end; the same command runs it again.")
    seconds = round(time.monotonic() - began, 1)
    write_json(job.folder / DONE, {"config": config, "status": status, "wall_s": seconds})
    last = evaluations[-1]["val_loss"]
    return f"{job.name}: status {status}, {len(steps)} steps, validation loss {last}, {seconds:.0f} s"


def jobs(work: Path, chosen: Callable[[arms.Arm], bool]) -> Iterator[Job]:
    """All runs, one seed of every arm before the next seed."""
    for seed in arms.SEEDS:
        for arm in filter(chosen, arms.ARMS):
            yield Job(arm, seed, work / "runs" / arm.study / f"{arm.name}_{seed}")


def evaluate(work: Path, costs: Sequence[tuple[int, float]]) -> dict[str, Any]:
    """The figures of both studies, from the runs that are there."""
    figures: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for job in jobs(work, lambda _: True):
        if not is_done(job, arms.configuration(job.arm, job.seed, work / "data", job.folder)):
            print(f"{job.name} is missing", file=sys.stderr)
            continue
        planned = json.loads((job.folder / DONE).read_text())["status"] == 0
        steps, evaluations = read_metrics(job.folder / FILE_NAME)
        found = run_figures(steps, evaluations, costs, arms.WARMUP_STEPS, planned)
        figures.setdefault(job.arm.study, {}).setdefault(job.arm.name, []).append(
            {"seed": job.seed, "rate": job.arm.rate, **found}
        )
    return {study: study_figures(study, by_arm) for study, by_arm in figures.items()}


def study_figures(study: str, by_arm: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Summary and single runs."""
    fixed = arms.FIXED_LOSS[study]
    return {"fixed_val_loss": fixed, "arms": summarize(by_arm, arms.references(study), fixed), "runs": by_arm}


def main(argv: list[str] | None = None) -> int:
    """Run what is left, evaluate, write."""
    args = parser().parse_args(argv)
    work = args.work.resolve()
    prepare(work / "data", addresses(args.corpus), arms.VOCABULARY, arms.EPOCH_DOCUMENTS)
    chosen = (lambda arm: arm.name in args.arms) if args.arms else (lambda arm: True)
    if not args.evaluate_only:
        with ThreadPoolExecutor(args.jobs) as pool:
            for line in pool.map(lambda job: run(job, work / "data"), list(jobs(work, chosen))):
                print(line, flush=True)
    timing = work / TIMING
    if args.timing:
        from benchmarks.slw_quality_timing import measure

        write_json(timing, measure(work))
    costs = json.loads(timing.read_text())["costs"] if timing.is_file() else []
    import torch

    result = {
        "benchmark": "slw_quality", "machine": platform.processor() or platform.machine(), "cpus": os.cpu_count(),
        "torch": torch.__version__, "corpus_sha256": file_sha256(work / "data" / "train.jsonl"),
        "settings": arms.settings(), "step_costs": costs, **evaluate(work, costs),
    }  # fmt: skip
    if args.json:
        write_json(args.json, result)
    if args.images:
        from benchmarks.slw_quality_figures import draw

        draw(without_nan(result), args.images)
    return 0


def parser() -> argparse.ArgumentParser:
    """The flags."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = result.add_argument
    add("--work", type=Path, required=True, help="where corpus and runs go; about 1 MB a run")
    add("--corpus", type=Path, default=CACHE, help="a folder of .txt files (default: where the tests put them)")
    add("--jobs", type=int, default=1, help="runs at once (default: 1)")
    add("--arms", nargs="+", help="only these (default: all)")
    add("--evaluate-only", action="store_true", help="train nothing; evaluate the runs that are there")
    add("--timing", action="store_true", help="measure the seconds of steps, some minutes; kept in --work")
    add("--json", type=Path, help="the results")
    add("--images", type=Path, help="a folder for the pictures")
    return result


if __name__ == "__main__":
    raise SystemExit(main())
