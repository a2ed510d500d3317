"""What tests share: a pool of gloo processes, tiny configurations, tiny data. Imported by tests and benchmarks alone.

Importing torch and DeepSpeed costs ten seconds a process, so the processes are started once and each distributed test
borrows the first n of them. Between tests the process groups and DeepSpeed's module globals are put back as they
were after the import.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import multiprocessing as mp
import queue
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_slw.config.schema import RunConfig

TIMEOUT_S = 240
MOST_THREADS = 100


class WorkerFailed(RuntimeError):
    """A process of the pool raised, died or did not answer; the message holds its traceback."""


@contextlib.contextmanager
def single_process() -> Iterator[None]:
    """A world of one in this process, torn down afterwards."""
    from megatron_slw.parallel.groups import init_distributed
    from megatron_slw.parallel.launch import Launch

    with tempfile.TemporaryDirectory() as folder, _clean_deepspeed():
        init_distributed(Launch(0, 1, 0, is_launched=True), store=Path(folder) / "store")
        yield


@contextlib.contextmanager
def _clean_deepspeed() -> Iterator[None]:
    """Put DeepSpeed's process-wide state back and end the process groups: nothing else undoes an initialize()."""
    import deepspeed
    import deepspeed.utils.groups as ds_groups
    import torch.distributed as dist
    import torch.nn.functional as F
    from deepspeed.comm import comm as ds_comm
    from deepspeed.runtime.pipe import p2p
    from deepspeed.runtime.zero.parameter_offload import DeepSpeedZeRoOffload
    from deepspeed.runtime.zero.partition_parameters import Init

    linear = F.linear
    modules = (ds_groups, ds_comm, p2p)
    kept = [{k: v for k, v in vars(m).items() if not k.startswith("__")} for m in modules]
    kept = [{k: copy.copy(v) if isinstance(v, dict | list) else v for k, v in state.items()} for state in kept]
    try:
        yield
    finally:
        for module, state in zip(modules, kept, strict=True):
            for name, value in state.items():
                setattr(module, name, value)
        # ZeRO-3 puts its own there and leaves it. A rank that once ran ZeRO-3 would get its gradients in another order
        # than one that did not, and ZeRO-2 adds them up by their order.
        F.linear = linear
        # It numbers parameters and modules per process and compares the numbers across ranks; the module counter
        # lives in a default argument.
        Init.param_id = 0
        DeepSpeedZeRoOffload._register_deepspeed_module.__defaults__[0][0] = 0
        deepspeed.checkpointing.reset()
        if dist.is_initialized():
            dist.destroy_process_group()


def _end_engines() -> None:
    """Let go of what a job left: hooks that ZeRO puts on the graph keep an engine, and with it its process groups.

    Each of these has threads that wake thirty times a second. After a hundred jobs they took most of a core.
    """
    _destroy_engines()  # a function of its own, whose variables are gone when the collector looks
    gc.collect()


def _destroy_engines() -> None:
    from deepspeed import DeepSpeedEngine

    for engine in [thing for thing in gc.get_objects() if isinstance(thing, DeepSpeedEngine)]:
        with contextlib.suppress(Exception):  # one that a failing job left half-made
            engine.destroy()


def _worker(rank: int, inbox: Any, outbox: Any) -> None:
    import deepspeed  # noqa: F401  before the freeze
    import torch

    from megatron_slw.parallel.groups import init_distributed
    from megatron_slw.parallel.launch import Launch

    torch.set_num_threads(1)
    gc.freeze()  # what the imports made is not looked through after each job
    while (job := inbox.get()) is not None:
        fn, args, world, store = job
        try:
            with _clean_deepspeed():
                init_distributed(Launch(rank, world, rank, is_launched=True), store=store, timeout_s=TIMEOUT_S)
                outbox.put((rank, True, fn(*args)))
        except BaseException:
            outbox.put((rank, False, traceback.format_exc()))
        _end_engines()


def _threads(pid: int) -> int:
    tasks = Path(f"/proc/{pid}/task")
    return len(list(tasks.iterdir())) if tasks.is_dir() else 0


class WorkerPool:
    """Processes that each run one rank of a job. Any failure ends all of them; the next job starts afresh."""

    def __init__(self) -> None:
        self._context = mp.get_context("spawn")
        self._processes: list[Any] = []
        self._inboxes: list[Any] = []
        self._outbox: Any = self._context.Queue()

    def run(self, fn: Callable[..., Any], world: int, args: tuple[Any, ...]) -> list[Any]:
        """What `fn(*args)` returned on each of `world` ranks."""
        while len(self._processes) < world:
            inbox = self._context.Queue()
            rank = len(self._processes)
            process = self._context.Process(target=_worker, args=(rank, inbox, self._outbox), daemon=True)
            process.start()
            self._processes.append(process)
            self._inboxes.append(inbox)
        results: dict[int, Any] = {}
        with tempfile.TemporaryDirectory() as folder:
            for inbox in self._inboxes[:world]:
                inbox.put((fn, args, world, Path(folder) / "store"))
            while len(results) < world:
                rank, value = self._next_result(world - len(results))
                results[rank] = value
        # What of ZeRO 3 is in no cycle that Python sees stays: the next job gets new processes then.
        if any(_threads(process.pid) > MOST_THREADS for process in self._processes):
            self.close()
        return [results[rank] for rank in range(world)]

    def _next_result(self, missing: int) -> tuple[int, Any]:
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            try:
                rank, ok, value = self._outbox.get(timeout=1.0)
                break
            except queue.Empty:
                dead = [i for i, process in enumerate(self._processes) if not process.is_alive()]
                if dead or time.monotonic() > deadline:
                    self.close()
                    why = f"ranks {dead} died" if dead else f"{missing} ranks did not answer within {TIMEOUT_S} s"
                    raise WorkerFailed(why) from None
        if not ok:
            raise WorkerFailed(f"rank {rank}:\n{value}" + self._other_failures(missing - 1))
        return rank, value

    def _other_failures(self, missing: int) -> str:
        """A rank that lost its peer often reports before the one that broke: hear the others too, then end all."""
        text = ""
        with contextlib.suppress(queue.Empty):
            for _ in range(missing):
                rank, ok, value = self._outbox.get(timeout=5)
                text += "" if ok else f"\nrank {rank}:\n{value}"
        self.close()
        return text

    def close(self) -> None:
        """End every process."""
        for process in self._processes:
            process.kill()
            process.join()
        self.__init__()  # type: ignore[misc]


def tiny_config(folder: Path | str, **changes: Any) -> RunConfig:
    """A two-layer model that trains in milliseconds; `changes` override by dotted name (`model__num_layers=4`).

    Args:
        folder: run directory; data is expected at `folder`/data.
        changes: section__field=value, or a top-level field of RunConfig.
    """
    tree: dict[str, Any] = {
        "model": {
            "num_layers": 2,
            "hidden_size": 32,
            "num_attention_heads": 4,
            "seq_length": 32,
            "vocab_size": 300,
            "hidden_dropout": 0.0,
            "attention_dropout": 0.0,
        },
        "parallel": {},
        "ops": {},
        "data": {"path": f"{folder}/data"},
        "training": {"train_steps": 12, "lr_decay_style": "constant"},
        "evaluation": {"interval": 0, "samples": 8},
        "checkpoint": {"interval": 0},
        "logging": {"directory": f"{folder}/run", "tensorboard": False},
        "optimizer": {"type": "AdamW", "lr": 1e-2, "weight_decay": 0.1},
        "curriculum": {
            "schedule_type": "fixed_discrete",
            "min_difficulty": 8,
            "max_difficulty": 32,
            "difficulty": [8, 16, 24, 16, 32],
            "max_step": [2, 4, 6, 9],
        },
        "world_size": 1,
        "train_batch_size": 8,
        "micro_batch_size": 2,
        "gradient_accumulation_steps": 4,
        "precision": "fp32",
        "zero_stage": 0,
        "gradient_clipping": 0.5,
        "deepspeed": {},
    }
    for name, value in changes.items():
        section, _, field = name.partition("__")
        if field:
            tree[section] = {**tree[section], field: value}
        else:
            tree[section] = {**tree[section], **value} if isinstance(value, Mapping) else value
    tree["gradient_accumulation_steps"] = tree["train_batch_size"] // (
        tree["micro_batch_size"] * (tree["world_size"] // (_replica(tree["parallel"])))
    )
    if tree["zero_stage"]:
        tree["deepspeed"] = {**tree["deepspeed"], "zero_optimization": {"stage": tree["zero_stage"]}}
    if tree["precision"] != "fp32":
        tree["deepspeed"] = {**tree["deepspeed"], tree["precision"]: {"enabled": True}}
    return RunConfig.model_validate(tree)


def _replica(parallel: Mapping[str, Any]) -> int:
    return int(parallel.get("tensor", 1)) * int(parallel.get("pipeline", 1))


def write_tiny_dataset(prefix: Path, documents: int = 40, vocab_size: int = 300, seed: int = 0) -> None:
    """A dataset of random documents of 20 to 200 tokens, without a tokenizer."""
    import numpy as np

    from megatron_slw.data.writer import IndexedDatasetWriter

    generator = np.random.default_rng(seed)
    with IndexedDatasetWriter(prefix, np.dtype(np.uint16)) as writer:
        for _ in range(documents):
            writer.add_document(generator.integers(0, vocab_size, int(generator.integers(20, 200))))
        writer.finish()


def write_random_checkpoint(
    config: RunConfig, directory: Path, step: int, kinds: Sequence[str] = ("weight", "exp_avg", "exp_avg_sq")
) -> Path:
    """A checkpoint of any size that nobody trained: small random weights and moments, one tensor at a time."""
    import torch

    from megatron_slw.checkpoint import format as layout
    from megatron_slw.checkpoint.state import TrainingState
    from megatron_slw.growth.operators.names import split_name
    from megatron_slw.growth.stage import tensor_names, tensor_shape
    from megatron_slw.growth.stream import write_all
    from megatron_slw.slw.compile import compile_plan

    class Random:
        shapes = {  # noqa: RUF012 - never changed
            f"{kind}/{name}": tensor_shape(split_name(name)[1], config.model)
            for name in tensor_names(config.model)
            for kind in kinds
        }

        def tensor(self, key: str) -> torch.Tensor:
            value = torch.rand(self.shapes[key]).sub_(0.5).mul_(0.1)
            return value.abs_() if key.startswith("exp_avg_sq/") else value

    plan = compile_plan(config)
    path = layout.step_folder(directory, step)
    path.mkdir(parents=True)
    write_all(Random(), path, 1, lambda *_: None)
    state = TrainingState(plan.progress_at(step), plan, config, optimizer_steps=step)
    layout.write_json(path / layout.STATE, state.to_json())
    layout.write_manifest(path, {file.name: layout.file_record(file) for file in path.iterdir()})
    return path
