"""A rank notices the end of its launcher, and of nothing else above it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from megatron_slw.train.launcher_watch import is_launcher

ROOT = Path(__file__).parents[2]
RANK = """
import os, sys
from megatron_slw.train.launcher_watch import LauncherWatch
watch = LauncherWatch()
print(watch.gone(), flush=True)
sys.stdin.readline()
print(watch.gone(), flush=True)
"""
LAUNCHER = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', {rank!r}]).wait()"


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["/v/bin/python", "/v/bin/deepspeed", "--num_gpus", "2", "pretrain_gpt.py"], True),
        (["/v/bin/python", "-u", "-m", "deepspeed.launcher.launch", "--world_info=x"], True),
        (["/v/bin/python3.11", "/v/bin/torchrun", "--standalone"], True),
        (["mpirun", "-n", "2", "python", "pretrain_gpt.py"], True),
        (["/v/bin/python", "pretrain_gpt.py", "--ds-config", "x.json", "--max-restarts", "3"], True),
        (["bash", "run.sh"], False),
        (["vim", "pretrain_gpt.py"], False),
        (["/v/bin/python", "tools/train_staged.py", "--launcher", "deepspeed"], False),
        ([], False),
    ],
)  # fmt: skip
def test_which_command_lines_are_launchers(command: list[str], expected: bool) -> None:
    assert is_launcher(command) == expected


@pytest.mark.parametrize(("name", "noticed"), [("torchrun", "True"), ("run_all", "False")])
def test_only_the_end_of_a_launcher_is_noticed(tmp_path: Path, name: str, noticed: str) -> None:
    script = tmp_path / name
    script.write_text(LAUNCHER.format(rank=RANK))
    command = [sys.executable, str(script)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, text=True, stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None and process.stdin is not None, "no pipes"
        assert process.stdout.readline() == "False\n"
        process.kill()
        process.wait()
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == f"{noticed}\n"
