"""A rank that dies, stops or slows down: found, named, ended in time, and restarted where that was asked for."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import numpy as np
import pytest

from megatron_slw.checkpoint.format import latest_checkpoint
from megatron_slw.checkpoint.load import Checkpoint
from tests.faults.launched import LONG, launched, prepare
from tests.train.test_pretrain import STEPS

pytestmark = pytest.mark.fault(10)
TIMEOUT = "--training.hang_timeout_s=16"
OFTEN = "--checkpoint.interval=5"


@pytest.mark.parametrize(
    ("launcher", "rank"),
    [
        ("torchrun", 1),
        pytest.param("torchrun", 0, marks=pytest.mark.campaign),
        pytest.param("deepspeed", 0, marks=pytest.mark.campaign),
        pytest.param("deepspeed", 1, marks=pytest.mark.campaign),
    ],
)
def test_a_dead_rank_is_named_in_the_last_line(tmp_path: Path, launcher: str, rank: int) -> None:
    prepare(tmp_path)
    with launched(launcher, tmp_path, LONG, TIMEOUT, OFTEN) as run:
        run.wait_for_step(6)
        run.ranks()[rank].kill()
        assert run.end() != 0, "the launcher calls a job with a dead rank a success"
        last = [line for line in run.err.splitlines() if "the same command goes on" in line.lower()]
        gone = "rank 0, which held the rendezvous, is gone" if "which held" in last[0] else f"rank {rank} gave no sign"
        assert len(last) == 1 and gone in last[0], run.err
        assert 'pretrain_gpt.py", line' not in run.err, "a traceback of ours"
        assert run.saved_step() >= 5


@pytest.mark.campaign
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("launcher", ["deepspeed", "torchrun"])
def test_a_stopped_rank_is_named_within_the_time_out(tmp_path: Path, launcher: str, rank: int) -> None:
    prepare(tmp_path)
    with launched(launcher, tmp_path, LONG, TIMEOUT, OFTEN) as run:
        run.wait_for_step(6)
        run.ranks()[rank].suspend()
        assert run.end() != 0
        last = rf"^rank {rank} gave no sign of life .*goes on from the last checkpoint\.$"
        assert re.search(last, run.err, re.M), run.err
        waiting = rf"^  rank {1 - rank}: step \d+, waiting, \w+\.py:\d+ "
        assert re.search(waiting, run.err, re.M), "not told where it stood"


@pytest.mark.campaign
@pytest.mark.parametrize("launcher", ["deepspeed", "python"])
@pytest.mark.parametrize("kind", ["killed", "stopped"])
def test_a_restarted_job_ends_as_if_nothing_had_happened(tmp_path: Path, launcher: str, kind: str) -> None:
    if launcher == "python" and kind == "stopped":
        pytest.skip("one process has no other that could miss it")
    straight, faulty = prepare(_made(tmp_path / "straight")), prepare(_made(tmp_path / "faulty"))
    with launched(launcher, straight) as run:
        assert run.end() == 0, run.err
    with launched(launcher, faulty, TIMEOUT, OFTEN, "--max-restarts", "2") as run:
        run.wait_for_step(7)
        rank = max(run.ranks())
        run.ranks()[rank].send_signal(signal.SIGKILL if kind == "killed" else signal.SIGSTOP)
        assert run.end() == 0, run.err
        assert "restart 1 of 2 from the last checkpoint" in run.err and "resumed at step" in run.out, run.err
    one, other = (Checkpoint(_last(folder)) for folder in (straight, faulty))
    assert one.progress == other.progress and one.progress.step == STEPS
    for key in one.blocks:
        assert np.array_equal(one.tensor(key).numpy(), other.tensor(key).numpy()), key


@pytest.mark.campaign
def test_a_slow_rank_is_named_while_training_goes_on(tmp_path: Path) -> None:
    """Rank 1 gets so little of a processor that the other waits for most of each step. Steps are long enough for
    communication to be a small part of them: a rank that is suspended in it looks like one that waits.
    """
    prepare(tmp_path)
    flags = ("--checkpoint.interval=0", "--evaluation.interval=0", "--model.hidden_size=256", "--model.num_layers=4")
    with launched("torchrun", tmp_path, LONG, *flags) as run:
        run.wait_for_step(3)
        slow = run.ranks()[1]
        while "holds up the others" not in run.err and run.process.poll() is None:
            slow.suspend()
            run.process_wait(0.45)
            slow.resume()
            run.process_wait(0.05)
        assert "warning: rank 1 holds up the others" in run.err, run.err
        assert run.process.poll() is None, "a slow rank is no reason to end"


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _last(folder: Path) -> Path:
    path = latest_checkpoint(folder / "run" / "checkpoints")
    assert path is not None, "no checkpoint"
    return path
