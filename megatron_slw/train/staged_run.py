"""A run in stages, growth between them. Killed at any moment, the same call goes on.

Where it stands is read from the run directories: the last stage that has a checkpoint is the one to go on with, and its
checkpoint and metrics say whether it has ended. Nothing is written down on the side.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from megatron_slw.checkpoint.format import latest_checkpoint, step_folder
from megatron_slw.checkpoint.load import Checkpoint
from megatron_slw.config.errors import ConfigError
from megatron_slw.config.import_path import import_paths
from megatron_slw.config.load import with_train_samples
from megatron_slw.config.write import to_tree
from megatron_slw.data.blend import open_samples
from megatron_slw.growth import display, flags, grow
from megatron_slw.growth.planner.points import Reader
from megatron_slw.growth.planner.watch import Reached, growth_point
from megatron_slw.growth.sizes import describe
from megatron_slw.slw.compile import compile_plan
from megatron_slw.train import child_process
from megatron_slw.train.child_process import Interrupted, locked
from megatron_slw.train.metrics import FILE_NAME, stream_metrics
from megatron_slw.train.staged_file import Stage, StagedRun, parse_growth
from megatron_slw.train.stop_flag import StopFlag

LOCK_NAME = "staged.lock"
LOG_NAME = "log.txt"


class StageError(RuntimeError):
    """A stage failed, or its growth did; the same command tries it again."""


def announcement(run: StagedRun) -> str:
    """What will be done, a line for each stage, and what is done."""
    newest = _newest(run)
    lines = []
    for i, stage in enumerate(run.stages):
        if i < newest or (i == newest and _end(stage) is not None):
            state = "done"
        else:
            state = "begun" if i == newest and _last_checkpoint(stage) is not None else "to do"
        what = f"{describe(stage.config.model)}, until {_until(stage)}, {stage.directory}"
        lines.append(f"stage {i + 1}: {what}: {state}")
    return "\n".join(lines)


def train_staged(run: StagedRun, command: Sequence[str], workers: int, say: Callable[[str], None]) -> None:
    """Run every stage to its end, growing in between.

    Args:
        run: the stages.
        command: the launcher and the trainer, without flags.
        workers: files at a time in a growth.
        say: is told what begins and what has ended.

    Raises:
        ConfigError: something does not fit, or another call runs the same stages.
        Interrupted: a signal came.
        StageError: a stage or a growth failed.
    """
    with locked(run.directory, LOCK_NAME, "call"), StopFlag() as stop:
        for i in range(_newest(run), len(run.stages)):
            stage = run.stages[i]
            if i > 0 and _last_checkpoint(stage) is None:
                _grow(run.stages[i - 1], stage, workers, say)
            if _end(stage) is None:
                say(f"stage {i + 1} of {len(run.stages)}: {describe(stage.config.model)}, until {_until(stage)}")
                _train(run, stage, command, stop)
            say(f"stage {i + 1} ended: {_end(stage)}")


def _newest(run: StagedRun) -> int:
    """The last stage that has a checkpoint, or the first one."""
    begun = [i for i, stage in enumerate(run.stages) if _last_checkpoint(stage) is not None]
    return begun[-1] if begun else 0


def _last_checkpoint(stage: Stage) -> Path | None:
    return latest_checkpoint(stage.directory / "checkpoints")


def _end(stage: Stage) -> str | None:
    """Where the stage ended, in words; None if it has not."""
    path = _last_checkpoint(stage)
    if path is None:
        return None
    checkpoint = Checkpoint(path)
    step, plan = checkpoint.progress.step, checkpoint.plan
    last = plan.total_steps
    if stage.step is not None:
        last = min(last, stage.step)
    if stage.tokens is not None:
        last = min(last, plan.steps_to_tokens(stage.tokens))
    if step >= last:
        return f"step {step:,} of {plan.total_steps:,}"
    reached = _growth_point(stage, checkpoint) if stage.is_auto else None
    return str(reached) if reached is not None else None


def _growth_point(stage: Stage, checkpoint: Checkpoint) -> Reached | None:
    """The trainer's verdict, from the same records: a kill may have left some that no checkpoint has."""
    path = stage.directory / FILE_NAME
    if not path.exists():
        return None
    reader = Reader(stage.config.model.seq_length)
    for _, record in stream_metrics(path):
        if record["step"] <= checkpoint.progress.step:
            reader.take(record)
    slope = next(item.partition("=")[2] for item in stage.overrides if item.startswith("--training.grow_slope="))
    return growth_point(reader, float(slope))


def _train(run: StagedRun, stage: Stage, command: Sequence[str], stop: StopFlag) -> None:
    config = stage.directory / grow.CONFIG_FILE if stage.grow else run.ds_config
    arguments = ["--ds-config", str(config), *stage.overrides, *_stop_after(stage)]
    log = stage.directory / LOG_NAME
    echo = child_process.Echo(log, sys.stdout)
    child_process.wait(log, echo, stop)
    status = 0
    if _end(stage) is None and not stop():
        status = child_process.run([*command, *arguments], log, echo, stop)
    if _end(stage) is not None:
        return
    if stop() or status == 0:
        raise Interrupted(child_process.STOPPED)
    line = child_process.last_line(log)
    if status == 2:
        raise ConfigError(line)
    raise StageError(f"{stage.directory.name} ended with status {status}: {line} (all of it: {log})")


def _stop_after(stage: Stage) -> list[str]:
    if stage.step is not None:
        return ["--stop-after", str(stage.step)]
    if stage.tokens is None:
        return []
    path = _last_checkpoint(stage)
    if path is not None:
        plan = Checkpoint(path).plan
    else:
        samples = open_samples(stage.config.data, stage.config.model.seq_length, "train")
        plan = compile_plan(with_train_samples(stage.config, len(samples)))
    return ["--stop-after", str(plan.steps_to_tokens(stage.tokens))]


def _grow(small: Stage, large: Stage, workers: int, say: Callable[[str], None]) -> None:
    load = _last_checkpoint(small)
    assert load is not None, "a stage that has ended has a checkpoint"
    growth = _planned(load, large, Checkpoint(load).progress.step)
    if growth.grown.progress.step != Checkpoint(load).progress.step:  # the clock begins again
        growth = _planned(load, large, growth.grown.progress.step)
    grown = growth.grown
    if grown.progress.step >= grown.plan.total_steps:
        raise ConfigError(
            f"{large.directory} has nothing to train: {load} is at step {grown.progress.step} of "
            f"{grown.plan.total_steps}. End the stage before earlier, or set a longer training.train_tokens or the "
            "like for this one."
        )
    say(display.headline(growth))
    for warning in display.warnings(growth):
        say(f"warning: {warning}")
    try:
        with _one_thread(), display.progress_bar(growth.tensors.shapes) as done:
            result = grow.run(growth, workers, done)
    except grow.GrowthError as error:
        raise StageError(str(error)) from None
    if result is not None:
        say(display.verdict(result))


def _planned(load: Path, large: Stage, step: int) -> grow.Growth:
    save = step_folder(large.directory / "checkpoints", step)
    own = [item for item in large.overrides if not item.startswith(("--logging.directory=", "--checkpoint.directory="))]
    trusted = [f"--{name}={value}" for name, value in import_paths(to_tree(large.config)).items()]
    argv = [f"--load={load}", f"--save={save}", *large.grow, *trusted, *own]
    return flags.plan(parse_growth(argv, "grow"))


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """The files are what is done in parallel."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _until(stage: Stage) -> str:
    if stage.is_auto:
        return "its growth point"
    if stage.step is not None:
        return f"step {stage.step:,}"
    return f"{stage.tokens:,} tokens" if stage.tokens is not None else "the end of its plan"
