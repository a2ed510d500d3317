"""The same run gives the same losses, bit for bit, under each launcher: two ranks of data parallelism."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from megatron_slw.config.errors import ConfigError
from megatron_slw.parallel.launch import agree_where_to_meet, read_launch
from megatron_slw.train.metrics import FILE_NAME, read_metrics
from tests.train.test_pretrain import BIN, ROOT, prepare

STEPS = 4
SETTINGS = [
    f"--training.train_steps={STEPS}", "--training.lr_warmup_steps=2", "--evaluation.interval=2",
    "--curriculum.total_curriculum_step=3",
]  # fmt: skip
LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
SRUN = """#!/bin/bash
# Two tasks on this machine, as srun starts them with --ntasks-per-node=2.
[ "$1" = --kill-on-bad-exit=1 ] && shift
status=0
for task in 0 1; do
    SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_NTASKS=2 "$@" &
    tasks[$task]=$!
done
for task in 0 1; do wait "${tasks[$task]}" || status=$?; done
exit $status
"""
SCONTROL = """#!/bin/bash
[ "$1 $2 $3" = "show hostnames two-tasks" ] && echo 127.0.0.1
"""


def launch(command: list[str], folder: Path, **variables: str) -> list[dict[str, Any]]:
    """Run to the end; what stands in metrics.jsonl but for the times."""
    env = {name: value for name, value in os.environ.items() if name not in LAUNCHER_VARIABLES}
    env |= {"OMP_NUM_THREADS": "1", "PATH": f"{BIN}:{env['PATH']}"} | variables
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "TP(1)-PP(1)-DP(2)" in done.stdout, "not two ranks"
    steps, evaluations = read_metrics(folder / "run" / FILE_NAME)
    times = ("step_time_s", "tokens_per_s", "mfu")
    assert len(steps) == STEPS and len(evaluations) == 2
    return [{key: value for key, value in line.items() if key not in times} for line in steps + evaluations]


def arguments(folder: Path) -> list[str]:
    return ["--ds-config", str(folder / "config.json"), *SETTINGS]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Under torchrun."""
    folder = prepare(tmp_path_factory.mktemp("torchrun"))
    command = [str(BIN / "torchrun"), "--standalone", "--nproc-per-node", "2", "pretrain_gpt.py"]
    return launch([*command, *arguments(folder)], folder)


def test_torchrun_gives_numbers(expected: list[dict[str, Any]]) -> None:
    losses = [line["loss"] for line in expected[:STEPS]]
    assert all(4 < loss < 7 for loss in losses) and len(set(losses)) == STEPS


def test_deepspeed_with_a_hostfile(expected: list[dict[str, Any]], tmp_path: Path) -> None:
    folder = prepare(tmp_path)
    (folder / "hostfile").write_text("localhost slots=2\n")
    command = [str(BIN / "deepspeed"), "--hostfile", str(folder / "hostfile"), "--no_ssh_check"]
    command += ["--master_addr", "127.0.0.1", "--master_port", "29617", "pretrain_gpt.py"]
    assert launch([*command, *arguments(folder)], folder) == expected


def test_mpirun_agrees_by_mpi4py(expected: list[dict[str, Any]], tmp_path: Path) -> None:
    pytest.importorskip("mpi4py")
    mpirun = shutil.which("mpirun", path=str(BIN)) or shutil.which("mpirun")
    if mpirun is None:
        pytest.skip("needs an mpirun: pip install mpich")
    folder = prepare(tmp_path)
    command = [mpirun, "-n", "2", sys.executable, "pretrain_gpt.py"]
    assert launch([*command, *arguments(folder)], folder) == expected


def test_the_slurm_script(expected: list[dict[str, Any]], tmp_path: Path) -> None:
    """examples/slurm.sh itself, with stand-ins for Slurm's two commands."""
    folder = prepare(tmp_path)
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    variables = {
        "PATH": f"{folder}:{BIN}:{os.environ['PATH']}", "CONFIG": str(folder / "config.json"), "SLURM_NTASKS": "2",
        "SLURM_JOB_NODELIST": "two-tasks", "SLURM_JOB_ID": "4711", "SLURM_PROCID": "0",
    }  # fmt: skip
    assert launch(["bash", "examples/slurm.sh", *SETTINGS], folder, **variables) == expected


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR or MASTER_PORT is not set"),
        ({"RANK": "0", "WORLD_SIZE": "two"}, "WORLD_SIZE='two' is not a number"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2 is not below WORLD_SIZE=2"),
    ],
    ids=["nowhere to meet", "no number", "beyond"],
)
def test_variables_that_make_no_sense_are_one_sentence(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    for name in LAUNCHER_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        agree_where_to_meet(read_launch())
