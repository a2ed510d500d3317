"""What a save takes from training: in the background beside at once, of one state, in alternation.

    python benchmarks/async_checkpoint.py

Time stolen is what a number of training steps with one save takes, over what the same steps take without. Of the first
background save the memory is fresh; it is taken before the first step, as in a run. One rank; the other cores, if there
are any, are the writing thread's. Writes benchmarks/results/async_checkpoint_cpu.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from megatron_slw.checkpoint.saver import Saver
from megatron_slw.checkpoint.state import TrainingState
from megatron_slw.parallel.groups import build_groups
from megatron_slw.testing import single_process, tiny_config, write_tiny_dataset
from megatron_slw.train.job import build_job
from megatron_slw.train.loop import Job

RESULT = Path(__file__).parent / "results" / "async_checkpoint_cpu.json"
SIZES = {"num_layers": 12, "hidden_size": 768, "num_attention_heads": 12, "seq_length": 64, "vocab_size": 300}


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="trained after each save while it is written")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=Path(__file__).parent) as folder, single_process():
        job = built(Path(folder))
        found = measured(job, args.rounds, args.steps)
    found["machine"] = {"cores": os.cpu_count(), "python": platform.python_version(), "torch": torch.__version__}
    RESULT.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    return 0


def built(folder: Path) -> Job:
    """A job of about 1 GB of state."""
    write_tiny_dataset(folder / "data")
    config = tiny_config(
        folder, model=SIZES, curriculum=None, train_batch_size=1, micro_batch_size=1, training__train_steps=100_000,
        checkpoint__asynchronous=True, checkpoint__keep_last=1,
    )  # fmt: skip
    return build_job(config, build_groups(config.parallel))


def measured(job: Job, rounds: int, steps: int) -> dict[str, Any]:
    """Seconds of `steps` steps without a save, with one at once and with one in the background, in turn."""
    number = 0

    def train() -> None:
        nonlocal number
        for _ in range(steps):
            step = job.plan.at(number)
            job.engine.train_step(job.train_data.read(step, 0, 1), step, 1e-5)
            number += 1

    def state() -> TrainingState:
        return TrainingState(job.plan.progress_at(number), job.plan, job.config, job.dataset)

    times: dict[str, list[float]] = {"plain": [], "at once": [], "background": [], "background, blocked": []}
    with Saver(job.engine, job.checkpoints, lambda _: None) as saver:
        train()
        for _ in range(rounds):
            times["plain"].append(seconds(train))
            times["at once"].append(seconds(lambda: saver.save(state(), last=True), train))
            blocked = seconds(lambda: saver.save(state()))
            times["background, blocked"].append(blocked)
            times["background"].append(blocked + seconds(train))
            saver.wait()  # not counted: what follows in a run is more training
            train()
    folder = max(job.checkpoints.iterdir())
    plain, median = statistics.median(times["plain"]), statistics.median
    at_once = [a - b for a, b in zip(times["at once"], times["plain"], strict=True)]
    background = [a - b for a, b in zip(times["background"], times["plain"], strict=True)]
    return {
        "state_gb": sum(path.stat().st_size for path in folder.iterdir()) / 1e9,
        "rounds": rounds,
        "steps_while_writing": steps,
        "seconds": {name: [round(value, 3) for value in values] for name, values in times.items()},
        "plain_step_s": plain / steps,
        "stolen_at_once_s": median(at_once),
        "stolen_background_s": median(background),
        "blocked_background_s": median(times["background, blocked"]),
        "ratio_stolen": median(background) / median(at_once),
        "ratio_blocked": median(times["background, blocked"]) / median(at_once),
    }


def seconds(*work: Callable[[], None]) -> float:
    """Wall-clock time of the calls together."""
    began = time.perf_counter()
    for call in work:
        call()
    return time.perf_counter() - began


if __name__ == "__main__":
    raise SystemExit(main())
