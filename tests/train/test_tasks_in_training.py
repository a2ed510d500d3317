"""Tasks during training: they say what a finished model would get, once each, and the training does not notice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_slw.config.errors import ConfigError
from megatron_slw.config.schema import RunConfig
from megatron_slw.testing import WorkerPool, tiny_config
from megatron_slw.train.metrics import read_metrics
from megatron_slw.train.task_schedule import open_tasks
from tests.evaluation.task_files import write_task_files
from tests.train.run_jobs import train_run
from tools import evaluate

LAYOUTS: list[dict[str, Any]] = [
    {"parallel": {"pipeline": 2}, "train_batch_size": 8},
    {"zero_stage": 3},
]
TIMES = ("step_time_s", "tokens_per_s")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_task_files(tmp_path_factory.mktemp("tasks"))


def config_of(run: Path, data: Path, tasks: list[dict[str, Any]], **layout: Any) -> RunConfig:
    """Eight steps of four lengths, with dropout; evaluated at its end and wherever tasks say."""
    changes = {
        "world_size": 2, "data__path": str(data), "data__split": "90,10,0", "model__vocab_size": None,
        "model__hidden_dropout": 0.2, "training__train_steps": 8, "checkpoint__interval": 4,
        "logging__tensorboard": True, "evaluation__tasks": tasks, **layout,
    }  # fmt: skip
    return tiny_config(run, **changes)


def task_lines(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "run" / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "scores" in line]


def without_times(run: Path) -> list[dict[str, Any]]:
    steps, _ = read_metrics(run / "run" / "metrics.jsonl")
    return [{key: value for key, value in step.items() if key not in (*TIMES, "resumed")} for step in steps]


@pytest.mark.parametrize("layout", LAYOUTS, ids=["pp2", "dp2-zero3"])
def test_training_with_tasks(pool: WorkerPool, tmp_path: Path, data: Path, layout: dict[str, Any]) -> None:
    tasks = [
        {"task": "lambada", "data": f"{data.parent}/lambada.jsonl", "interval": 3},
        {"task": "wikitext", "data": f"{data.parent}/wikitext.txt", "stride": 16, "interval": 4},
        {"task": "text", "data": f"{data.parent}/text.jsonl", "limit": 5, "name": "held out"},
    ]
    pool.run(train_run, 2, (config_of(tmp_path / "plain", data, [], **layout),))
    config = config_of(tmp_path / "tasks", data, tasks, **layout)
    pool.run(train_run, 2, (config,))
    assert without_times(tmp_path / "tasks") == without_times(tmp_path / "plain")
    lines = task_lines(tmp_path / "tasks")
    assert [(line["step"], [*line["scores"]]) for line in lines] == [
        (3, ["lambada"]), (4, ["wikitext"]), (6, ["lambada"]), (8, ["lambada", "wikitext", "held out"]),
    ]  # fmt: skip

    # of a run that was killed after step 6 the checkpoint of step 4 is left: 6 and 8 are done once more
    (tmp_path / "tasks/run/checkpoints/step_000008").rename(tmp_path / "moved")
    pool.run(train_run, 2, (config,))
    assert task_lines(tmp_path / "tasks") == lines, "each is there once"

    weights = [path / "manifest.json" for path in (tmp_path / "moved", tmp_path / "plain/run/checkpoints/step_000008")]
    hashes = [json.loads(path.read_text())["files"] for path in weights]
    tensors = [{name: value for name, value in each.items() if name.endswith("safetensors")} for each in hashes]
    assert tensors[0] == tensors[1] and tensors[0], "every weight and moment is that of the training alone"


def test_the_tool_gives_the_same_figures(
    pool: WorkerPool, tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = [
        {"task": "lambada", "data": f"{data.parent}/lambada.jsonl"},
        {"task": "wikitext", "data": f"{data.parent}/wikitext.txt"},
    ]
    pool.run(train_run, 2, (config_of(tmp_path, data, tasks, parallel={"tensor": 2}),))
    (line,) = task_lines(tmp_path)
    for task in tasks:
        flags = ["--load", f"{tmp_path}/run/checkpoints/step_000008", "--task", task["task"], "--data", task["data"]]
        assert evaluate.main([*flags, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        for name, value in line["scores"][task["task"]].items():
            assert found[name] == pytest.approx(value, rel=1e-5), name


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"task": "lambada", "data": "wikitext.txt"}, r"tasks\.0: .*wikitext\.txt is no LAMBADA file"),
        ({"task": "text", "data": "none.jsonl"}, r"tasks\.0: .*none\.jsonl does not exist"),
    ],
)
def test_files_are_read_before_the_training(tmp_path: Path, data: Path, task: dict[str, str], message: str) -> None:
    config = config_of(tmp_path, data, [{**task, "data": f"{data.parent}/{task['data']}"}])
    with pytest.raises(ConfigError, match=message):
        open_tasks(config)


def test_a_tokenizer_that_is_elsewhere_has_a_setting(tmp_path: Path, data: Path) -> None:
    config = config_of(tmp_path, data, [{"task": "text", "data": "x"}], evaluation__tokenizer_dir=str(tmp_path))
    with pytest.raises(ConfigError, match=r"evaluation\.tasks need the tokenizer: .* evaluation\.tokenizer_dir says"):
        open_tasks(config)
