"""From a RunConfig to a running job: data, plan, checkpoint to resume, engine."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_slw.checkpoint import format as layout
from megatron_slw.checkpoint.load import Checkpoint
from megatron_slw.checkpoint.resume import check_plan, load_optimizer_state, verify_together
from megatron_slw.checkpoint.save import SaveError
from megatron_slw.config.errors import ConfigError
from megatron_slw.config.load import load_config, to_json, with_vocab_size
from megatron_slw.config.schema import RunConfig
from megatron_slw.data.loader import TrainLoader, ValidLoader
from megatron_slw.data.vocabulary import check_ids, require_same_tokenizer, resolve_vocab_size
from megatron_slw.data.windows import Windows, open_windows
from megatron_slw.model.init import initial_value
from megatron_slw.parallel.groups import Groups, Launch, build_groups, check_precision, init_distributed, read_launch
from megatron_slw.parallel.sharding import Shard
from megatron_slw.progress import Progress
from megatron_slw.slw.plan import compile_plan
from megatron_slw.train.engine import Engine, NonFiniteError
from megatron_slw.train.engine_state import WEIGHT, ensure_optimizer_state
from megatron_slw.train.loop import Job, train

# Dense peak in TFLOP/s of the precision trained in, from the vendors' data sheets.
PEAK_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "V100": 125.0}


def main(config_path: str, overrides: list[str]) -> int:
    """Train what a configuration file describes, on this process's part of the job; returns the exit status."""
    launch = read_launch()
    try:
        config = load_config(config_path, overrides, launch.world_size)
        check_precision(config.precision)
        open_data(config)  # what is wrong with the data is said before the processes meet
        init_distributed(launch)
        train(build_job(config, build_groups(config.parallel)))
    except ConfigError as error:
        return _report(launch, error, 2)
    except (NonFiniteError, SaveError) as error:
        return _report(launch, error, 1)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return 0


def _report(launch: Launch, error: Exception, status: int) -> int:
    """One sentence, on one rank."""
    if launch.rank == 0:
        print(error, file=sys.stderr, flush=True)
    return status


def build_job(config: RunConfig, groups: Groups) -> Job:
    """Open the data, compile the plan, find what to resume, build the engine. Collective.

    Raises:
        ConfigError: data, checkpoint and configuration do not fit each other.
    """
    train_windows, valid_windows = open_data(config)
    config = with_vocab_size(config, resolve_vocab_size(train_windows.dataset, config.model.vocab_size))
    _check_datasets(config, train_windows, valid_windows)
    plan = compile_plan(config)
    directory = checkpoint_directory(config)
    if groups.rank == 0:
        layout.remove_debris(directory)
    dist.barrier()
    checkpoint = find_checkpoint(config)
    dataset = dataset_identity(train_windows)
    initial: Callable[[Shard], Tensor] = partial(initial_value, model=config.model, seed=config.training.seed)
    start = Progress()
    if checkpoint is not None:
        verify_together(checkpoint, groups)
        check_plan(checkpoint, plan)
        _check_same_data(checkpoint, dataset)
        start = checkpoint.progress
        initial = partial(_saved_weight, checkpoint)
    engine = Engine(config, groups, initial)
    ensure_optimizer_state(engine)
    if checkpoint is not None:
        load_optimizer_state(engine, checkpoint)
    if groups.rank == 0:
        _write_config(config)
    seed = config.training.seed
    return Job(
        config=config,
        plan=plan,
        engine=engine,
        train_data=TrainLoader(train_windows, seed),
        valid_data=ValidLoader(valid_windows) if valid_windows is not None else None,
        dataset=dataset,
        start=start,
        checkpoints=directory,
        peak_flops=_peak_flops(config),
    )


def open_data(config: RunConfig) -> tuple[Windows, Windows | None]:
    """Training windows, and validation windows unless evaluation.interval is 0."""
    length = config.model.seq_length
    train_windows = open_windows(config.data, length, "train")
    return train_windows, open_windows(config.data, length, "valid") if config.evaluation.interval else None


def checkpoint_directory(config: RunConfig) -> Path:
    """Where the run's checkpoints lie."""
    return Path(config.checkpoint.directory or Path(config.logging.directory) / "checkpoints")


def find_checkpoint(config: RunConfig) -> Checkpoint | None:
    """The run's own newest checkpoint if it has one, else checkpoint.load, else nothing.

    An explicit `load` beside existing checkpoints starts from `load` if that lies among them (going back), else from
    the newest of the run: a killed job started by the same command must not begin again.
    """
    directory = checkpoint_directory(config)
    newest = layout.latest_checkpoint(directory)
    load = config.checkpoint.load
    if load is None:
        return Checkpoint(newest) if newest is not None else None
    inside = Path(load).resolve().parent == directory.resolve()
    return Checkpoint(newest) if newest is not None and not inside else Checkpoint(load)


def dataset_identity(windows: Windows) -> dict[str, Any]:
    """What must be the same for a resume to read the same tokens."""
    sidecar = windows.dataset.sidecar
    tokenizer = sidecar.tokenizer if sidecar else None
    return {
        "tokens": len(windows.tokens),
        "documents": windows.dataset.num_documents,
        "bin_sha256": sidecar.bin_sha256 if sidecar else None,
        "tokenizer_sha256": tokenizer.sha256 if tokenizer else None,
    }


def _saved_weight(checkpoint: Checkpoint, shard: Shard) -> Tensor:
    return checkpoint.tensor(f"{WEIGHT}/{shard.name}", shard)


def _check_datasets(config: RunConfig, train: Windows, valid: Windows | None) -> None:
    if valid is not None:
        require_same_tokenizer(train.dataset, valid.dataset)
    sidecar = train.dataset.sidecar
    if (sidecar is None or sidecar.tokenizer is None) and config.model.vocab_size is not None:
        # no tokenizer vouches for the ids
        check_ids(train.dataset, config.model.vocab_size)


def _check_same_data(checkpoint: Checkpoint, dataset: dict[str, Any]) -> None:
    saved = checkpoint.state["dataset"]
    if isinstance(saved, dict):
        for name, value in dataset.items():
            if saved.get(name) != value:
                raise ConfigError(
                    f"{checkpoint} it was trained on data with {name} {saved.get(name)!r:.80}, but data.path has "
                    f"{value!r:.80}. Point data.path at the same dataset, or start in a new logging.directory."
                )


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
