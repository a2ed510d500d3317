"""Loggers get each line of metrics.jsonl; one that fails is told no more, and says so."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from megatron_slw.config.errors import ConfigError
from megatron_slw.progress import Progress
from megatron_slw.testing import WorkerPool, tiny_config, write_tiny_dataset
from megatron_slw.train import wandb_logger
from megatron_slw.train.loggers import GuardedLogger, check_loggers, open_loggers
from megatron_slw.train.metrics import FILE_NAME, MetricsWriter, read_metrics
from megatron_slw.train.wandb_logger import run_id
from tests.train.logger_jobs import logged_run, refused_run
from tests.train.test_metrics import metrics, progress

ROOT = Path(__file__).resolve().parents[2]


class Listener:
    """Keeps what it is told; fails at a step, or when it is closed."""

    def __init__(self, fails_at: int | None = None, fails_in_close: bool = False) -> None:
        self.fails_at, self.fails_in_close = fails_at, fails_in_close
        self.records: list[Mapping[str, Any]] = []

    def log(self, record: Mapping[str, Any]) -> None:
        if record["step"] == self.fails_at:
            raise OSError("no\nspace")
        self.records.append(record)

    def close(self) -> None:
        if self.fails_in_close:
            raise RuntimeError("no network")


def run(folder: Path, listener: Listener) -> list[str]:
    """Four steps and an evaluation; what was noted."""
    notes: list[str] = []
    guarded = GuardedLogger("logging.x", listener, notes.append)
    with MetricsWriter(folder, Progress(), loggers=[guarded]) as writer:
        for step in range(1, 5):
            writer.step(metrics(step, grad_norm=float("inf")))
        writer.evaluation(progress(4), 3.5)
    guarded.close()
    return notes


def test_a_logger_gets_the_lines_of_the_file(tmp_path: Path) -> None:
    listener = Listener()
    assert run(tmp_path, listener) == []
    steps, evaluations = read_metrics(tmp_path / FILE_NAME)
    assert listener.records == steps + evaluations
    assert listener.records[0]["grad_norm"] is None


def test_a_failure_is_told_at_once_and_in_the_end_and_the_file_is_whole(tmp_path: Path) -> None:
    listener = Listener(fails_at=2)
    first, last = run(tmp_path, listener)
    assert first == last and "logging.x failed at step 2 (OSError: no space)" in first, first
    assert [record["step"] for record in listener.records] == [1], "it was told more"
    assert len(read_metrics(tmp_path / FILE_NAME)[0]) == 4


def test_a_failure_to_close_is_told(tmp_path: Path) -> None:
    (note,) = run(tmp_path, Listener(fails_in_close=True))
    assert "at its end (RuntimeError: no network)" in note


def test_ctrl_c_in_a_logger_is_no_failure_of_it(tmp_path: Path) -> None:
    class Interrupted(Listener):
        def log(self, record: Mapping[str, Any]) -> None:
            raise KeyboardInterrupt("twice")

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Interrupted())


MODULE = """
import json
from pathlib import Path

class Logger:
    def __init__(self, folder, start):
        self.file = open(Path(folder) / "own.jsonl", "a")
        self.file.write(json.dumps({"start": start}) + "\\n")
    def log(self, record):
        if record["step"] == 9:
            raise RuntimeError("server gone")
        self.file.write(json.dumps(record) + "\\n")
    def close(self):
        self.file.close()

def factory(config, start):
    return Logger(config["logging"]["directory"], start)

def wrong(config, start):
    return print

def broken(config, start):
    raise OSError("no server")
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_logger_for_tests.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_a_logger_of_the_users_own_follows_a_run_and_its_resume(
    pool: WorkerPool, tmp_path: Path, own_module: None
) -> None:
    write_tiny_dataset(tmp_path / "data")
    config = tiny_config(
        tmp_path, logging={"callback": "my_logger_for_tests:factory"}, training={"train_steps": 10},
        checkpoint={"interval": 4}, curriculum=None, world_size=2,
    )  # fmt: skip
    outputs = [pool.run(logged_run, 2, (str(tmp_path), config, stop)) for stop in (4, None)]
    lines = [json.loads(line) for line in (tmp_path / "run" / "own.jsonl").read_text().splitlines()]
    steps, _ = read_metrics(tmp_path / "run" / FILE_NAME)
    assert [record["step"] for record in steps] == list(range(1, 11)), "the failure ended the run"
    assert lines == [{"start": 0}, *steps[:4], {"start": 4}, *steps[4:8]]
    assert outputs[0] == [4, 4] and outputs[1] == [10, 10]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("my_logger_for_tests:wrong", r"must return an object with log\(record\) and close\(\)"),
        ("my_logger_for_tests:broken", "failed: OSError: no server"),
        ("my_logger_for_tests:nothing", "cannot be imported"),
    ],
)
def test_a_logger_that_cannot_be_opened_is_refused(tmp_path: Path, own_module: None, path: str, message: str) -> None:
    config = tiny_config(tmp_path, logging__callback=path)
    with pytest.raises(ConfigError, match=message), open_loggers(config, Progress(), print):
        pytest.fail("it was opened")


def test_what_fails_on_rank_0_ends_all_ranks(pool: WorkerPool, tmp_path: Path, own_module: None) -> None:
    write_tiny_dataset(tmp_path / "data")
    config = tiny_config(tmp_path, logging__callback="my_logger_for_tests:broken", world_size=2)
    messages = pool.run(refused_run, 2, (str(tmp_path), config))
    assert "no server" in messages[0] and "rank 0 could not open" in messages[1]


def test_a_missing_package_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb_logger, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install wandb"):
        check_loggers(tiny_config(tmp_path, logging__wandb={"project": "p"}).logging)


def test_the_identity_of_a_run_is_kept_for_its_resumes_alone(tmp_path: Path) -> None:
    first = run_id(tmp_path, Progress())
    assert run_id(tmp_path, progress(3)) == first and run_id(tmp_path, progress(5)) == first
    second = run_id(tmp_path, Progress())
    assert second != first and run_id(tmp_path, progress(3)) == second
    (tmp_path / wandb_logger.ID_FILE).write_text("../" * 50)
    with pytest.raises(ConfigError, match="Delete it"):
        run_id(tmp_path, progress(3))


WANDB = """
import sys
from pathlib import Path
from megatron_slw.config.schema import WandbConfig
from megatron_slw.train.metrics import MetricsWriter
from megatron_slw.train.wandb_logger import WandbLogger
from tests.train.test_metrics import metrics, progress

folder, start, stop = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
settings = WandbConfig(project="p", mode="offline", tags=("a",))
logger = WandbLogger(settings, folder, progress(start), {"model": {"num_layers": 2}})
with MetricsWriter(folder, progress(start), loggers=[logger]) as writer:
    for step in range(start + 1, stop + 1):
        writer.step(metrics(step, loss=8.0 / step))
    writer.evaluation(progress(stop), 3.5)
logger.close()
"""


def test_weights_and_biases_keeps_one_run_offline(tmp_path: Path) -> None:
    """With the real package, resumed from step 2 after a kill at step 3: two parts of one run, read from its files."""
    pytest.importorskip("wandb")
    for start, stop in ((0, 3), (2, 4)):
        done = subprocess.run(
            [sys.executable, "-c", WANDB, str(tmp_path / "run"), str(start), str(stop)], cwd=ROOT,
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    paths = sorted((tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb"), key=lambda p: p.stat().st_mtime_ns)
    assert len({path.name for path in paths}) == 1, "not one run"
    first, second = (list(wandb_history(path)) for path in paths)
    assert [line["train/loss"] for line in first[:-1]] == [8.0, 4.0, 8 / 3]
    assert [line["step"] for line in second] == [3, 4, 4] and second[-1]["validation/loss"] == 3.5
    assert second[0]["tokens"] == 300 and second[0]["train/flops"] == 3e21 and "train/mfu" not in second[0]


def wandb_history(path: Path) -> Iterator[dict[str, Any]]:
    """The values of an offline run: LevelDB's log format (blocks of 32 KiB) of protobuf records."""
    from wandb.proto import wandb_internal_pb2

    data, at, record = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (room := 32768 - at % 32768) < 7:
            at += room
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        record += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            message = wandb_internal_pb2.Record()
            message.ParseFromString(record)
            if message.WhichOneof("record_type") == "history":
                items = message.history.item
                yield {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
            record = b""
