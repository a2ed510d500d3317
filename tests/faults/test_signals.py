"""Signals to each rank and to the launcher: saved within a step, the documented status, no process left behind."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.faults.launched import LONG, launched, prepare

pytestmark = pytest.mark.fault(6)
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
WITHIN = 3  # steps: the one at work, and what runs between our look at the log and the signal's arrival


@pytest.mark.campaign
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
@pytest.mark.parametrize("to", ["rank-0", "rank-1", "launcher"])
@pytest.mark.parametrize("launcher", ["deepspeed", "torchrun"])
def test_a_signal_saves_and_ends_the_job(tmp_path: Path, launcher: str, to: str, number: signal.Signals) -> None:
    prepare(tmp_path)
    with launched(launcher, tmp_path, LONG) as run:
        run.wait_for_step(5)
        at = run.step()
        target = run.process if to == "launcher" else run.ranks()[int(to[-1])]
        target.send_signal(number)
        status = run.end()
        assert at <= run.saved_step() == run.step(), (at, run.saved_step(), run.step(), run.err)
        # The deepspeed command passes no SIGINT on: Python first waits a quarter of a second for its child, then ends,
        # and the ranks see that its end has come. From a terminal Ctrl-C reaches the ranks themselves.
        told = not (launcher == "deepspeed" and to == "launcher" and number == signal.SIGINT)
        assert run.step() <= at + WITHIN or not told, (at, run.step(), run.err)
        assert "stopped by" in run.out and "the same command goes on" in run.out, run.out[-500:]
        assert to == "launcher" or status == 0, f"ranks that saved left with a failure: {status}, {run.err}"


def test_a_launcher_that_is_killed_leaves_no_rank_behind(tmp_path: Path) -> None:
    prepare(tmp_path)
    with launched("torchrun", tmp_path, LONG) as run:
        run.wait_for_step(2)
        run.process.kill()
        run.end()
        assert "stopped by the end of its launcher" in run.out, run.out[-500:]
        assert run.saved_step() == run.step(), "not saved"
