"""A hostfile is read strictly before DeepSpeed's launcher puts its names into command lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_slw.config.errors import ConfigError
from megatron_slw.config.hostfile import read_hostfile
from megatron_slw.report.dry_run import main

ROOT = Path(__file__).resolve().parents[2]
GOOD = {
    "worker-1 slots=8\nworker-2 slots=4\n": {"worker-1": 8, "worker-2": 4},
    "# ours\n\n  10.0.0.1\tslots=2 \r\nnode_3.cluster.example slots=1": {"10.0.0.1": 2, "node_3.cluster.example": 1},
}
BAD = {
    "option": "-oProxyCommand=touch${IFS}/tmp/x slots=1",
    "shell": "worker;reboot slots=1",
    "substitution": "$(reboot) slots=1",
    "backtick": "`reboot` slots=1",
    "several": "a,b slots=1",
    "user and option": "-l@worker slots=1",
    "ends in a hyphen": "worker- slots=1",
    "more after the slots": "worker slots=8 -x",
    "more in the slots": "worker slots=8;reboot",
    "no slots": "worker",
    "quoted": '"worker" slots=1',
    "control": "wor\x1bker slots=1",
    "not ASCII": "wörker slots=1",
    "other digits": "worker slots=\u0663",
    "long": "a" * 300 + " slots=1",
    "twice": "worker slots=1\nworker slots=2",
    "zero": "worker slots=0",
    "too many": "worker slots=999999",
    "empty": "# nothing\n",
}


@pytest.mark.parametrize("text", GOOD)
def test_machines_and_slots(tmp_path: Path, text: str) -> None:
    (tmp_path / "hosts").write_text(text)
    assert read_hostfile(str(tmp_path / "hosts")) == GOOD[text]


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_machine_is_refused(tmp_path: Path, case: str) -> None:
    (tmp_path / "hosts").write_text("first slots=1\n" + BAD[case] if case not in ("empty",) else BAD[case])
    with pytest.raises(ConfigError, match="--hostfile") as refused:
        read_hostfile(str(tmp_path / "hosts"))
    assert "\n" not in str(refused.value) and "\x1b" not in str(refused.value)


def test_no_file_and_a_device(tmp_path: Path) -> None:
    for path in (str(tmp_path / "none"), str(tmp_path), "/dev/zero"):
        with pytest.raises(ConfigError, match="cannot be read|no hostfile"):
            read_hostfile(path)


def test_a_dry_run_imagines_the_ranks_of_the_hostfile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, hosts = str(ROOT / "examples" / "ds_slw.json"), str(ROOT / "examples" / "hostfile")
    changes = ["--model.vocab_size=50257", "--train_batch_size=512", "--train_micro_batch_size_per_gpu=8"]
    assert main(config, changes, 1, False, hosts) == 0
    assert "on 32 ranks" in capsys.readouterr().out
    (tmp_path / "hosts").write_text(BAD["option"])
    assert main(config, changes, 1, False, str(tmp_path / "hosts")) == 2
    output = capsys.readouterr()
    assert output.out == "" and "line 1" in output.err and output.err.count("\n") == 1
