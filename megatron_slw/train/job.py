"""From a RunConfig to a running job: data, plan, checkpoint to resume, engine."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_slw.checkpoint import format as layout
from megatron_slw.checkpoint.load import Checkpoint
from megatron_slw.checkpoint.resume import check_model, check_plan, load_optimizer_state, verify_together
from megatron_slw.checkpoint.save_error import SaveError
from megatron_slw.checkpoint.skip_journal import read_journal
from megatron_slw.config.errors import ConfigError
from megatron_slw.config.load import load_config, to_json, with_train_samples, with_vocab_size
from megatron_slw.config.schema import RunConfig
from megatron_slw.data.blend import BlendedWindows, open_samples, parts_of
from megatron_slw.data.fingerprint import difference, fingerprint
from megatron_slw.data.loader import TrainLoader, ValidLoader
from megatron_slw.data.vocabulary import shared_vocab_size
from megatron_slw.data.windows import Windows
from megatron_slw.model.init import initial_value
from megatron_slw.parallel.groups import COLLECTIVE_TIMEOUT_S, Groups, build_groups, check_precision, init_distributed
from megatron_slw.parallel.launch import Launch, agree_where_to_meet, read_launch
from megatron_slw.parallel.sharding import Shard
from megatron_slw.progress import Progress
from megatron_slw.slw.adaptive import AdaptivePacing
from megatron_slw.slw.compile import compile_plan
from megatron_slw.slw.skipped import Skipped
from megatron_slw.slw.spikes import SpikeWindow
from megatron_slw.slw.stability import Stability
from megatron_slw.train.engine import Engine, StepRefused
from megatron_slw.train.engine_state import WEIGHT, ensure_optimizer_state
from megatron_slw.train.loggers import check_loggers
from megatron_slw.train.loop import Job, train
from megatron_slw.train.rehearsal import OutOfMemory, rehearse
from megatron_slw.train.task_schedule import open_tasks
from megatron_slw.train.watch import Watch, lost_connection

RANK_0_FIRST_S = 10
# Dense peak in TFLOP/s of the precision trained in, from the vendors' data sheets.
PEAK_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "V100": 125.0}


def main(config_path: str, overrides: list[str], stop_after: int | None = None, life_fd: int | None = None) -> int:
    """Train what a configuration file describes, on this process's part of the job; returns the exit status.

    Args:
        config_path: the JSON file.
        overrides: settings from the command line.
        stop_after: leave after this step.
        life_fd: a pipe on which a parent process expects signs of life.
    """
    launch = read_launch()
    try:
        config = load_config(config_path, overrides, launch.world_size)
        check_precision(config.precision)
        check_loggers(config.logging)
        open_data(config)  # what is wrong with the data is said before the processes meet
        agree_where_to_meet(launch)
        _train_watched(config, launch, stop_after, life_fd)
    except ConfigError as error:
        return _report(launch, error, 2)
    except (StepRefused, SaveError) as error:
        return _report(launch, error, 1)
    except LostRank as error:
        if str(error):
            print(error, file=sys.stderr, flush=True)  # one of those that are left says it
        return 1
    except (OutOfMemory, OSError) as error:
        print(error, file=sys.stderr, flush=True)  # from this rank: the others' memory may suffice
        return 1
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return 0


class LostRank(RuntimeError):
    """Another rank ended and took the communication with it; empty where another rank tells of it."""


def _train_watched(config: RunConfig, launch: Launch, stop_after: int | None, life_fd: int | None) -> None:
    timeout_s = config.training.hang_timeout_s
    # The watch must find a hang before the collective gives up with a message of its own.
    patience_s = 2 * timeout_s + 60 if timeout_s else COLLECTIVE_TIMEOUT_S
    store = init_distributed(launch, timeout_s=patience_s)
    with Watch(store, launch.rank, launch.world_size, timeout_s, life_fd) as watch:
        try:
            train(build_job(config, build_groups(config.parallel)), stop_after, watch)
        except RuntimeError as error:
            if not lost_connection(error):
                raise
            raise LostRank(watch.explain() or "") from None


def _report(launch: Launch, error: Exception, status: int) -> int:
    """One sentence, on one rank.

    A launcher ends all ranks when one has failed: rank 0 gets the time to say what all have found. Who is alive after
    that has found it alone.
    """
    if launch.rank:
        time.sleep(RANK_0_FIRST_S)
    print(f"rank {launch.rank}: {error}" if launch.rank else error, file=sys.stderr, flush=True)
    return status


def build_job(config: RunConfig, groups: Groups) -> Job:
    """Open the data, compile the plan, find what to resume, build the engine. Collective.

    Raises:
        ConfigError: data, checkpoint and configuration do not fit each other.
        OutOfMemory: the largest step does not fit; nothing was written.
    """
    train_windows, valid_windows = open_data(config)
    config = with_vocab_size(config, _vocab_size(config, train_windows, valid_windows))
    config = with_train_samples(config, len(train_windows))
    tasks = open_tasks(config)
    directory = checkpoint_directory(config)
    if groups.rank == 0:
        layout.remove_debris(directory)
    dist.barrier()
    checkpoint = find_checkpoint(config)
    journal = read_journal(directory)
    pacing = _pacing(config, checkpoint)
    plan = compile_plan(config, pacing.decisions if pacing is not None else ())
    dataset = fingerprint(train_windows, config.data, config.training.seed)
    initial: Callable[[Shard], Tensor] = partial(initial_value, model=config.model, seed=config.training.seed)
    start = Progress()
    if checkpoint is not None:
        verify_together(checkpoint, groups)
        check_model(checkpoint, config.model)
        check_plan(checkpoint, plan)
        _check_same_data(checkpoint, dataset, config.data.allow_changed, groups.rank)
        start = checkpoint.progress
        initial = partial(_saved_weight, checkpoint)
    growth = checkpoint.growth if checkpoint is not None else None
    engine = Engine(config, groups, initial, growth.multipliers if growth is not None else {})
    tracked = config.data.track_documents
    train_data = TrainLoader(train_windows, config.training.seed, track_documents=tracked)
    ensure_optimizer_state(engine)
    rehearse(engine, plan, train_data, start.step)
    if checkpoint is not None:
        load_optimizer_state(engine, checkpoint)
    if groups.rank == 0:
        _write_config(config)
    return Job(
        config=config,
        plan=plan,
        engine=engine,
        train_data=train_data,
        valid_data=ValidLoader(valid_windows, track_documents=tracked) if valid_windows is not None else None,
        dataset=dataset,
        start=start,
        stability=checkpoint.stability if checkpoint is not None else Stability(),
        spike_window=checkpoint.state.spike_window if checkpoint is not None else SpikeWindow(),
        skipped=(checkpoint.state.skipped if checkpoint is not None else Skipped()).joined(journal.skips),
        tasks=tasks,
        growth=growth,
        pacing=pacing,
        checkpoints=directory,
        peak_flops=_peak_flops(config),
    )


def open_data(config: RunConfig) -> tuple[Windows | BlendedWindows, Windows | BlendedWindows | None]:
    """Training windows, and validation windows unless evaluation.interval is 0."""
    length = config.model.seq_length
    train_windows = open_samples(config.data, length, "train")
    return train_windows, open_samples(config.data, length, "valid") if config.evaluation.interval else None


def checkpoint_directory(config: RunConfig) -> Path:
    """Where the run's checkpoints lie."""
    return Path(config.checkpoint.directory or Path(config.logging.directory) / "checkpoints")


def find_checkpoint(config: RunConfig) -> Checkpoint | None:
    """The run's own newest checkpoint if it has one, else checkpoint.load, else nothing.

    A killed job started by the same command must not begin again at checkpoint.load.

    Raises:
        ConfigError: checkpoint.load is a checkpoint of this run, and not the newest. Trained on from there, the later
            ones would lie in the way of the next start.
    """
    directory = checkpoint_directory(config)
    newest = layout.latest_checkpoint(directory)
    load = Path(config.checkpoint.load) if config.checkpoint.load is not None else None
    if newest is None:
        return Checkpoint(load) if load is not None else None
    if load is not None and load.resolve().parent == directory.resolve() and load.name != newest.name:
        raise ConfigError(
            f"checkpoint.load is {load.name} of a run that has come to {newest.name}: to go back, move the later ones "
            f"out of {directory} and leave checkpoint.load out, or load it into another logging.directory."
        )
    return Checkpoint(newest)


def _saved_weight(checkpoint: Checkpoint, shard: Shard) -> Tensor:
    return checkpoint.tensor(f"{WEIGHT}/{shard.name}", shard)


def _pacing(config: RunConfig, checkpoint: Checkpoint | None) -> AdaptivePacing | None:
    """What a loss_adaptive schedule has decided so far; None of any other schedule."""
    if config.curriculum is None or config.curriculum.schedule_type != "loss_adaptive":
        return None
    saved = checkpoint.pacing if checkpoint is not None else None
    return saved if saved is not None else AdaptivePacing()


def _vocab_size(config: RunConfig, train: Windows | BlendedWindows, valid: Windows | BlendedWindows | None) -> int:
    """The size of the vocabulary that every dataset was made with."""
    parts = list(parts_of(train))
    if valid is not None and config.data.valid_path is not None:
        parts += parts_of(valid)
    return shared_vocab_size([part.dataset for part in parts], config.model.vocab_size)


def _check_same_data(checkpoint: Checkpoint, dataset: dict[str, object], allow_changed: bool, rank: int) -> None:
    """Refuse to go on with other data than the checkpoint was trained on, or say so where that is allowed."""
    saved = checkpoint.state.dataset
    changed = difference(saved, dataset) if saved is not None else None
    if changed is None:
        return
    name, before, now = changed
    text = f"{checkpoint} it was trained on a dataset with {name} {before!r:.80}, but this run's has {now!r:.80}."
    if not allow_changed:
        raise ConfigError(
            f"{text} Give data.path, data.split and training.seed as they were, start in a new logging.directory, or "
            "set data.allow_changed to true to go on regardless."
        )
    if rank == 0:
        print(f"warning: {text} data.allow_changed is set: going on.", file=sys.stderr, flush=True)


def _peak_flops(config: RunConfig) -> float | None:
    tflops = config.logging.peak_tflops
    if tflops is None and torch.cuda.is_available() and config.precision != "fp32":
        name = torch.cuda.get_device_name()
        tflops = next((peak for known, peak in PEAK_TFLOPS.items() if known in name), None)
    return tflops * 1e12 * config.world_size if tflops else None


def _write_config(config: RunConfig) -> None:
    folder = Path(config.logging.directory)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(to_json(config), indent=1) + "\n", encoding="utf-8")
