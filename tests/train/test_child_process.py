"""A trainer as a process: what it says is shown, it is told to stop, and one that outlived its parent is waited for."""

from __future__ import annotations

import fcntl
import io
import subprocess
import sys
from pathlib import Path

from megatron_slw.train import child_process

SAVES = "import signal; signal.signal(signal.SIGTERM, lambda *_: (print('saved', flush=True), exit(0))); "


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_the_output_is_shown_and_kept(tmp_path: Path) -> None:
    log, shown = tmp_path / "log.txt", io.StringIO()
    log.write_text("of an earlier start\n")
    status = child_process.run(python("print('step 1'); exit(3)"), log, child_process.Echo(log, shown), lambda: False)
    assert status == 3
    assert shown.getvalue() == "step 1\n"
    assert log.read_text() == "of an earlier start\nstep 1\n"
    assert child_process.last_line(log) == "step 1"


def test_a_request_to_stop_lets_it_save(tmp_path: Path) -> None:
    log, shown = tmp_path / "log.txt", io.StringIO()
    code = SAVES + "print('ready', flush=True); signal.pause()"
    status = child_process.run(python(code), log, child_process.Echo(log, shown), lambda: "ready" in log.read_text())
    assert (status, shown.getvalue()) == (0, "ready\nsaved\n")


def test_the_ranks_of_a_launcher_that_died_are_waited_for(tmp_path: Path) -> None:
    """The launcher ends at once; its rank, which has the log too, says its last word afterwards."""
    log, shown = tmp_path / "log.txt", io.StringIO()
    rank = f"import os, pathlib\nwhile not pathlib.Path({str(tmp_path / 'go')!r}).exists(): pass\nprint('rank saved')"
    launcher = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {rank!r}]); print('launched')"

    def stopping() -> bool:
        if "launched" in log.read_text():
            (tmp_path / "go").touch()
        return False

    assert child_process.run(python(launcher), log, child_process.Echo(log, shown), stopping) == 0
    assert shown.getvalue() == "launched\nrank saved\n"


def test_one_that_outlived_its_parent_is_waited_for_and_not_ended(tmp_path: Path) -> None:
    log, shown = tmp_path / "log.txt", io.StringIO()
    child_process.wait(log, child_process.Echo(log, shown), lambda: False)  # nothing runs
    with log.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        orphan = subprocess.Popen(python("input(); print('trained on')"), stdin=subprocess.PIPE, stdout=file)
    child_process.wait(log, child_process.Echo(log, shown), lambda: True)
    assert orphan.poll() is None and child_process.is_running(log), "it was not ours to end"
    asked: list[bool] = []

    def stopping() -> bool:
        if not asked and orphan.stdin is not None:
            orphan.stdin.write(b"\n")
            orphan.stdin.close()
        asked.append(True)
        return False

    child_process.wait(log, child_process.Echo(log, shown), stopping)
    assert orphan.wait() == 0 and shown.getvalue() == "trained on\n"
    assert not child_process.is_running(log)
