"""The two runs of a calibration: a small model and a larger one, each trained here or made before.

The larger one is trained no further than to the small one's last loss: nothing beyond it is compared. Killed at any
moment, the same call goes on; where a run stands is read from its metrics.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_slw.config.errors import ConfigError
from megatron_slw.config.json_file import read_json
from megatron_slw.config.load import load_config, with_train_samples, with_vocab_size
from megatron_slw.config.overrides import apply_overrides
from megatron_slw.config.schema import RunConfig
from megatron_slw.data.blend import open_samples, parts_of
from megatron_slw.data.vocabulary import resolve_vocab_size
from megatron_slw.growth.planner.calibration import AVERAGED
from megatron_slw.slw.compile import compile_plan
from megatron_slw.train import child_process
from megatron_slw.train.child_process import Interrupted, locked
from megatron_slw.train.estimate import flops_per_token, plan_flops
from megatron_slw.train.metrics import FILE_NAME, read_metrics
from megatron_slw.train.stop_flag import StopFlag
from megatron_slw.train.tune_state import write_json

LOCK_NAME, LOG_NAME, CONFIG_NAME = "calibration.lock", "log.txt", "ds_config.json"
RESULT_NAME = "calibration.json"
SAVES = 10


class CalibrationError(RuntimeError):
    """A run failed; the same command tries it again."""


@dataclass(frozen=True)
class Side:
    """One of the two."""

    name: str
    """small or target."""
    run: Path
    """Its run directory."""
    tree: dict[str, object] | None
    """The configuration file to train it with; None for a run that was made before."""
    config: RunConfig | None
    steps: int = 0
    """To train at most."""
    flops: int = 0
    """Of these."""

    def losses(self) -> list[tuple[int, float]]:
        """Steps and validation losses so far."""
        path = self.run / FILE_NAME
        _, evaluations = read_metrics(path) if path.exists() else ([], [])
        return [(record["step"], record["val_loss"]) for record in evaluations if record["val_loss"] is not None]


def read_side(name: str, given: Path, output: Path, overrides: Sequence[str], world_size: int) -> Side:
    """A run directory, or a configuration file that is trained in `output`.

    Raises:
        ConfigError: it is neither, or the configuration is wrong, or `output` has a run of another.
    """
    if given.is_dir():
        return Side(name, given, None, None)
    config = load_config(given, overrides, world_size)
    if config.checkpoint.load is not None or not config.evaluation.interval:
        rule = "checkpoint.load must be null" if config.checkpoint.load is not None else "evaluation.interval is 0"
        raise ConfigError(f"{given}: {rule}: a curve is that of a run from its first step, with its validation losses.")
    train = open_samples(config.data, config.model.seq_length, "train")
    config = with_vocab_size(config, resolve_vocab_size(parts_of(train)[0].dataset, config.model.vocab_size))
    plan = compile_plan(with_train_samples(config, len(train)))
    run = output / name
    own = {
        "logging.directory": str(run),
        "checkpoint.directory": None,
        "checkpoint.interval": max(1, plan.total_steps // SAVES),
        "checkpoint.keep_last": 1,
    }
    items = [f"--{key}={json.dumps(value)}" for key, value in own.items()]
    tree, _ = apply_overrides(read_json(given), [*overrides, *items])
    path = run / CONFIG_NAME
    if path.exists() and read_json(path) != tree:
        raise ConfigError(f"{run} is the run of another configuration. Give another --output.")
    return Side(name, run, tree, config, plan.total_steps, plan_flops(config.model, plan))


def check_pair(small: Side, target: Side) -> None:
    """ConfigError where the two configurations have nothing to compare."""
    if small.config is None or target.config is None:
        return
    pairs = {
        "model.seq_length": (small.config.model.seq_length, target.config.model.seq_length),
        "model.vocab_size": (small.config.model.vocab_size, target.config.model.vocab_size),
        "data": (small.config.data, target.config.data),
        "evaluation.samples": (small.config.evaluation.samples, target.config.evaluation.samples),
    }
    for name, (one, other) in pairs.items():
        if one != other:
            raise ConfigError(
                f"{name} of --small and --target must be the same, or their losses are not of one kind: {one} and "
                f"{other}."
            )
    costs = [flops_per_token(config.model, config.model.seq_length) for config in (small.config, target.config)]
    if costs[0] >= costs[1]:
        raise ConfigError("--target is not larger than --small: give the small model first.")


def train_both(
    small: Side, target: Side, output: Path, command: Sequence[str], say: Callable[[str], None]
) -> None:
    """Train what is to be trained: the small model to its end, then the larger one to the small one's last loss.

    Args:
        small: a run or a configuration.
        target: another.
        output: of the calibration.
        command: the launcher and the trainer, without flags.
        say: is told what begins.

    Raises:
        ConfigError: the trainer refused a configuration, or `output` is in use.
        Interrupted: a signal came; the run has saved.
        CalibrationError: a run failed.
    """
    with locked(output, LOCK_NAME, "calibration"), StopFlag() as stop:
        _train(small, command, stop, lambda: _at_end(small), say)
        last = _mean(small)

        def reached() -> bool:
            found = _mean(target)
            return _at_end(target) or (last is not None and found is not None and found < last)

        _train(target, command, stop, reached, say)


def _train(
    side: Side, command: Sequence[str], stop: StopFlag, ended: Callable[[], bool], say: Callable[[str], None]
) -> None:
    if side.tree is None:
        return
    log = side.run / LOG_NAME
    side.run.mkdir(parents=True, exist_ok=True)
    write_json(side.run / CONFIG_NAME, side.tree)
    echo = child_process.Echo(log, sys.stdout)
    child_process.wait(log, echo, stop)
    if ended():
        return
    began, status = log.stat().st_size, 0
    if not stop():
        say(f"{side.name}: {side.steps:,} steps at most, {side.run}")
        arguments = ["--ds-config", str(side.run / CONFIG_NAME)]
        status = child_process.run([*command, *arguments], log, echo, lambda: stop() or ended())
    if ended():
        return
    if stop():
        raise Interrupted(child_process.STOPPED)
    line = child_process.last_line(log, began)
    if status == 2:
        raise ConfigError(line)
    raise CalibrationError(f"{side.name} ended with status {status} before its last step: {line} (all of it: {log})")


def _at_end(side: Side) -> bool:
    losses = side.losses()
    return bool(losses) and losses[-1][0] >= side.steps


def _mean(side: Side) -> float | None:
    """Of the last validation losses; None while there are too few."""
    losses = [loss for _, loss in side.losses()][-AVERAGED:]
    return sum(losses) / AVERAGED if len(losses) == AVERAGED else None
