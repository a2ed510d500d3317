"""Trains the chains of growth_quality.py in this process, stage after stage, with the framework's own functions.

A stage that is complete is not trained again; one that was killed is. What a user would do with pretrain_gpt.py,
grow_checkpoint.py and pretrain_gpt.py again, without the seconds of their imports.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.address_corpus import DONE, write_json
from benchmarks.growth_quality_arms import Chain, configuration, growth_flags
from benchmarks.growth_quality_evaluation import Point, averaged, reached
from benchmarks.growth_quality_moments import replace_moments
from benchmarks.slw_quality_evaluation import StepCost, step_seconds
from megatron_slw.checkpoint.format import latest_checkpoint, step_folder
from megatron_slw.checkpoint.load import Checkpoint
from megatron_slw.config.load import load_config
from megatron_slw.growth.grow import CONFIG_FILE
from megatron_slw.parallel.groups import build_groups
from megatron_slw.progress import Progress
from megatron_slw.testing import single_process
from megatron_slw.train.estimate import plan_flops
from megatron_slw.train.job import build_job
from megatron_slw.train.loop import Job, train
from megatron_slw.train.metrics import FILE_NAME, read_metrics
from tools import grow_checkpoint

CHUNK = 40
"""Steps between two looks at whether a chain has come to its goal."""
BEGIN = "begin.json"
Costs = Mapping[str, Sequence[StepCost]]
"""Of each size, FLOPs and seconds of steps, by rising FLOPs."""


@dataclass(frozen=True)
class Goal:
    """Where a chain's last stage ends."""

    loss: float
    """As soon as the averaged validation loss is that low,"""
    flops: float
    """or after so many."""


def curve(chain: Chain, work: Path, costs: Costs | None = None) -> list[Point]:
    """The evaluations of a chain so far, all stages of it; seconds are nan without `costs`."""
    points = curve(chain.before, work, costs) if len(chain.stages) > 1 else []
    folder = work / "runs" / chain.name
    if not (folder / FILE_NAME).is_file():
        return points
    facts = json.loads((folder / BEGIN).read_text())
    steps, evaluations = read_metrics(folder / FILE_NAME)
    size, seconds = chain.stages[-1].size, points[-1].seconds if points else 0.0
    before, spent = facts["plan_flops_before"], {}
    for record in steps:
        seconds += math.nan if costs is None else step_seconds(record["flops"] - before, costs[size])
        before = record["flops"]
        spent[record["step"]] = (facts["flops_before"] - facts["plan_flops_before"] + before, seconds)
    lengths = {record["step"]: record["seq_len"] for record in steps}
    for record in evaluations:
        step = record["step"]
        points.append(Point(*spent[step], record["tokens"], record["val_loss"], len(chain.stages), lengths[step]))
    return points


def run_chain(chain: Chain, work: Path, goal: Goal | None) -> str:
    """Train what is missing of a chain; one line on it.

    Args:
        chain: its last stage without an end needs a goal.
        work: the folder of data and runs.
        goal: of the last stage.
    """
    folder = work / "runs" / chain.name
    if (folder / DONE).is_file():
        return f"{chain.name}: done before"
    if len(chain.stages) > 1:
        run_chain(chain.before, work, None)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    began, wall = time.process_time(), time.monotonic()
    with (folder / "log").open("w") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        facts = _train(chain, work, folder, goal)
    seconds = {"process_s": round(time.process_time() - began, 1), "wall_s": round(time.monotonic() - wall, 1)}
    write_json(folder / DONE, facts | seconds)
    points = curve(chain, work)
    return (
        f"{chain.name}: {len(points)} evaluations, {points[-1].flops:.3g} FLOPs, loss "
        f"{averaged([point.loss for point in points])[-1]:.4f}, {seconds['process_s']:.0f} s CPU, "
        f"{seconds['wall_s']:.0f} s"
    )


def _train(chain: Chain, work: Path, folder: Path, goal: Goal | None) -> dict[str, Any]:
    """The last stage."""
    file = folder / CONFIG_FILE
    before: Checkpoint | None = None
    flops_before = 0.0
    if len(chain.stages) == 1:
        write_json(file, configuration(chain, work / "data", folder))
    else:
        small = work / "runs" / chain.before.name
        flops_before = curve_end(chain.before, work)
        path = latest_checkpoint(small / "checkpoints")
        assert path is not None, "a stage that has ended has a checkpoint"
        before = Checkpoint(path)
        save = step_folder(folder / "checkpoints", before.progress.step)
        if grow_checkpoint.main([f"--load={path}", f"--save={save}", *growth_flags(chain)]):
            raise SystemExit(f"{chain.name} did not grow: see {folder / 'log'}")
    torch.set_num_threads(1)
    stage = chain.stages[-1]
    config = load_config(file, [], 1)
    with single_process():
        job = build_job(config, build_groups(config.parallel))
        if before is not None:
            replace_moments(job.engine, before, stage.moments)
        facts = {
            "flops_before": flops_before, "plan_flops_before": plan_flops(job.config.model, job.plan, job.start.step),
            "start_step": job.start.step, "start_tokens": job.start.tokens,
        }  # fmt: skip
        write_json(folder / BEGIN, facts)
        if stage.end is not None:
            last = job.plan.steps_to_tokens(stage.end)
            progress = _trained(job, last)
        else:
            assert goal is not None, "the last stage needs a goal"
            is_there = _watch(chain, work, goal)
            progress = job.start
            while not is_there():
                progress = _trained(replace(job, start=progress), progress.step + CHUNK)
        total = flops_before + plan_flops(job.config.model, job.plan, progress.step) - facts["plan_flops_before"]
    return facts | {"flops": total, "step": progress.step, "tokens": progress.tokens}


def _trained(job: Job, last: int) -> Progress:
    """Train to a step; SystemExit if a signal came before."""
    progress = train(job, last)
    if progress.step < last:
        raise SystemExit("stopped by a signal; the same command goes on.")
    return progress


def _watch(chain: Chain, work: Path, goal: Goal) -> Callable[[], bool]:
    def is_there() -> bool:
        points = curve(chain, work)
        if not points:
            return False
        return reached(points, goal.loss) is not None or points[-1].flops >= goal.flops

    return is_there


def curve_end(chain: Chain, work: Path) -> float:
    """FLOPs of a whole chain."""
    return float(json.loads((work / "runs" / chain.name / DONE).read_text())["flops"])
