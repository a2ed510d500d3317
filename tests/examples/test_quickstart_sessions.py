"""Stopping what the launcher started: the ranks alone get the signal, and nothing is left behind."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import training
from stamps import write_json

LAUNCHER = r"""
import subprocess, sys
rank = "import os, signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); "
rank += r"os.write(1, b'up\n'); signal.pause()"  # one write: lines of two processes do not mix
command = [sys.executable, "-c", rank, "pretrain_gpt.py"]
ranks = [subprocess.Popen([*command, f"--local_rank={i}"]) for i in range(2)]
sys.exit(max(rank.wait() for rank in ranks))
"""


@pytest.fixture
def launcher() -> Iterator[subprocess.Popen[str]]:
    """A process that starts two others and waits, all in a session of their own."""
    command = [sys.executable, "-c", LAUNCHER, "pretrain_gpt.py"]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert [process.stdout.readline() for _ in range(2)] == ["up\n", "up\n"]
        yield process
    finally:
        for member in training.members(process.pid):
            member.kill()
        process.stdout.close()
        process.wait()


def test_ranks_are_told_from_the_launcher(launcher: subprocess.Popen[str]) -> None:
    assert len(training.ranks(launcher.pid)) == 2
    assert len(training.members(launcher.pid)) == 3
    training.ask_to_stop(training.ranks(launcher.pid))
    assert launcher.wait(timeout=60) == 0  # it ended by itself, as its ranks did


def test_session_ends_with_its_launcher_killed(launcher: subprocess.Popen[str]) -> None:
    launcher.kill()
    launcher.wait()
    assert len(training.ranks(launcher.pid)) == 2, "the orphans keep their session"
    training.end_session(launcher.pid)
    assert training.members(launcher.pid) == []


def test_leftovers_of_a_run_directory(launcher: subprocess.Popen[str], tmp_path: Path) -> None:
    training.stop_leftovers(tmp_path)
    assert len(training.ranks(launcher.pid)) == 2
    write_json(tmp_path / training.SESSION_FILE, {"session": launcher.pid})
    training.stop_leftovers(tmp_path)
    assert training.ranks(launcher.pid) == []


def test_session_of_nobody() -> None:
    assert training.members(2**22 + 1) == []
    training.end_session(2**22 + 1)


@pytest.mark.parametrize(
    ("content", "step"),
    [
        (None, 0),
        ("", 0),
        ('{"step": 1, "loss": 2.0}\n', 1),
        ('{"step": 1}\n{"step": 2}\n{"st', 2),
        ('{"step": 1}\n{"step": 2}', 1),
        ('{"step": 7, "x": "' + "y" * 5000 + '"}\n', 0),
        ('{"step": 7, "x": "' + "y" * 5000 + '"}\n{"step": 8}\n', 8),
    ],
)
def test_newest_step(tmp_path: Path, content: str | None, step: int) -> None:
    if content is not None:
        (tmp_path / "metrics.jsonl").write_text(content)
    assert training.last_step(tmp_path) == step


PRETEND = """
import json, pathlib, sys
run = pathlib.Path(sys.argv[2])
(run / "checkpoints" / f"step_{int(sys.argv[3]):06d}").mkdir(parents=True)
(run / "checkpoints" / f"step_{int(sys.argv[3]):06d}" / "manifest.json").write_text("{}")
(run / "metrics.jsonl").write_text('{"step": %s}\\n' % sys.argv[3])
sys.exit(int(sys.argv[4]))
"""


@pytest.mark.parametrize(
    ("saved", "status", "stop_at", "outcome"),
    [
        (10, 0, None, ""),
        (10, 7, None, "status 7 after step 10 was saved"),
        (6, 7, 5, "status 7 after step 6 was saved"),
        (6, 0, None, "status 0 at step 6, before step 10"),
        (4, 7, 5, "status 7 at step 4, before step 5"),
    ],
)
def test_what_counts_is_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved: int, status: int, stop_at: int | None, outcome: str
) -> None:
    command = [sys.executable, "-c", PRETEND, "pretrain_gpt.py", str(tmp_path / "run"), str(saved), str(status)]
    monkeypatch.setattr(training.Training, "command", command)
    job = training.Training(tmp_path / "x.json", (), tmp_path / "run", total_steps=10)
    said: list[str] = []
    if "before" in outcome:
        with pytest.raises(training.TrainingFailed, match=outcome):
            training.launch(job, said.append, stop_at)
    else:
        training.launch(job, said.append, stop_at)
        assert [line.removeprefix("the launcher ended with ") for line in said] == ([outcome] if outcome else [])
