"""kill -9 at any moment of a save: what was complete stays complete, what was not never counts."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_slw.checkpoint import format as layout
from megatron_slw.checkpoint.load import Checkpoint
from megatron_slw.testing import WorkerPool, tiny_config, write_tiny_dataset
from tests.checkpoint import jobs

# A commit of a prepared folder in a process that kills itself before its N-th call of an operating-system function.
CHILD = """
import os, pathlib, shutil, signal, sys
from megatron_slw.checkpoint import format as layout
writing, final, deadline = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), int(sys.argv[3])
records = {p.name: layout.file_record(p) for p in writing.iterdir()}
calls = 0
def deadly(function):
    def wrapper(*args, **kwargs):
        global calls
        if calls == deadline:
            os.kill(os.getpid(), signal.SIGKILL)
        calls += 1
        return function(*args, **kwargs)
    return wrapper
for name in ("fsync", "rename", "open", "unlink", "rmdir"):
    setattr(os, name, deadly(getattr(os, name)))
shutil.os = os
layout.commit(writing, final, records, keep_last=1)
print(calls)
"""


@pytest.fixture(scope="module")
def saved(pool: WorkerPool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kill")
    write_tiny_dataset(folder / "data")
    pool.run(jobs.run, 1, (tiny_config(folder), 4, (2, 4)))
    return folder / "run" / "checkpoints"


def commit_and_die(saved: Path, folder: Path, deadline: int) -> subprocess.CompletedProcess[str]:
    """Commit step 4 beside step 2, of which retention then deletes step 2."""
    shutil.copytree(saved / "step_000002", folder / "step_000002")
    writing = folder / ("step_000004" + layout.WRITING)
    shutil.copytree(saved / "step_000004", writing)
    (writing / layout.MANIFEST).unlink()
    command = [sys.executable, "-c", CHILD, str(writing), str(folder / "step_000004"), str(deadline)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])


def test_kill_at_every_call_of_a_commit(saved: Path, tmp_path: Path) -> None:
    total = int(commit_and_die(saved, tmp_path / "whole", 10**6).stdout)
    assert total >= 8, "the commit makes fewer calls than it must"
    newest = set()
    for deadline in range(total):
        folder = tmp_path / str(deadline)
        process = commit_and_die(saved, folder, deadline)
        assert process.returncode == -signal.SIGKILL, process.stderr
        latest = layout.latest_checkpoint(folder)
        assert latest is not None, f"killed at call {deadline}: no checkpoint is left"
        newest.add(latest.name)
        layout.remove_debris(folder)
        for checkpoint in layout.complete_checkpoints(folder):
            Checkpoint(checkpoint).verify()
        left = {p.name for p in folder.iterdir()}
        assert left <= {"step_000002", "step_000004"}, f"killed at call {deadline}: {left}"
        assert os.path.isdir(latest), "the latest checkpoint was taken for debris"
    assert newest == {"step_000002", "step_000004"}, "the kills did not straddle the rename"
