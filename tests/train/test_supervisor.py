"""pretrain_gpt.py --max-restarts, with a small script in the place of the rank."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_slw.parallel.launch import restart_environment

ROOT = Path(__file__).parents[2]
RUN = "import sys; from megatron_slw.train.supervisor import main; sys.exit(main(sys.argv[2:], int(sys.argv[1])))"
# Counts its starts in a file, then does what the test says for that start.
CHILD = """
import os, signal, sys, time
path, life = sys.argv[1], int(sys.argv[-1])
start = int(open(path).read()) if os.path.exists(path) else 0
open(path, "w").write(str(start + 1))
"""


def supervise(tmp_path: Path, restarts: int, body: str, **env: str) -> subprocess.Popen[str]:
    script = tmp_path / "rank.py"
    script.write_text(CHILD + body)
    command = [sys.executable, "-c", RUN, str(restarts), sys.executable, str(script), str(tmp_path / "starts")]
    clean = {k: v for k, v in os.environ.items() if k not in ("MASTER_PORT", "TORCHELASTIC_RUN_ID")}
    return subprocess.Popen(
        command, cwd=ROOT, env=clean | env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def starts(tmp_path: Path) -> int:
    return int((tmp_path / "starts").read_text())


def test_a_failed_rank_starts_again_at_a_port_of_its_own(tmp_path: Path) -> None:
    body = "print(os.environ['MASTER_PORT']); sys.exit(0 if start == 2 else 1)"
    status, out, err = ended(supervise(tmp_path, 3, body, MASTER_PORT="29500"))
    assert status == 0 and out.split() == ["29500", "29501", "29502"], (out, err)
    assert "restart 2 of 3" in err


def test_restarts_have_an_end_and_a_kill_a_status(tmp_path: Path) -> None:
    status, _, _ = ended(supervise(tmp_path, 2, "os.kill(os.getpid(), signal.SIGKILL)"))
    assert status == 128 + signal.SIGKILL and starts(tmp_path) == 3


@pytest.mark.parametrize("status", [0, 2])
def test_an_end_in_order_and_wrong_input_are_not_repeated(tmp_path: Path, status: int) -> None:
    assert ended(supervise(tmp_path, 3, f"sys.exit({status})"))[0] == status
    assert starts(tmp_path) == 1


def test_a_signal_reaches_the_rank_once_and_ends_the_restarts(tmp_path: Path) -> None:
    body = """
got = []
signal.signal(signal.SIGINT, lambda *_: got.append(1))
print("ready", flush=True)
signal.pause()
os.write(1, f"{len(got)} signals".encode())
sys.exit(1)
"""
    process = supervise(tmp_path, 3, body)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    status, out, _ = ended(process)
    assert status == 1 and out == "1 signals" and starts(tmp_path) == 1


def test_a_stopped_rank_is_killed_after_the_silence_it_allowed(tmp_path: Path) -> None:
    body = """
if start == 0:
    os.write(life, b"1\\n")
    os.kill(os.getpid(), signal.SIGSTOP)
"""
    status, _, err = ended(supervise(tmp_path, 1, body))
    assert status == 0 and err.count("gave no sign of life for 1 s and is killed") == 1, err


def test_under_torchrun_the_flag_is_torchruns(tmp_path: Path) -> None:
    status, _, err = ended(supervise(tmp_path, 1, "", TORCHELASTIC_RUN_ID="x"))
    assert status == 2 and "torchrun's own flag" in err and len(err.splitlines()) == 1


def test_without_a_rendezvous_the_environment_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_PORT", raising=False)
    assert restart_environment(3) == dict(os.environ)
