"""What is read from a run directory, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from megatron_slw.config.errors import ConfigError
from megatron_slw.report import series
from megatron_slw.report.inputs import read_runs
from megatron_slw.report.series import MAX_MARKS, read_run
from tests.report.run_files import evaluation, falling, stable_step, step, write_run


def test_totals_clocks_and_evaluations(tmp_path: Path) -> None:
    write_run(tmp_path, [evaluation(0, 11.0), *falling(40, 20, 5.0, 1.0)])
    run = read_run("a", tmp_path)
    assert run.end == (40, 4000, 40_000, 80)
    assert run.evaluations == (((0, 0, 0, 0), 11.0), ((20, 2000, 20_000, 40), 5.0), ((40, 4000, 40_000, 80), 4.0))
    time = run.clock("time")
    assert time is not None and time.tolist() == [2.0 * n for n in range(1, 41)]
    assert (run.spikes, run.spike_score, run.discarded, run.resumes) == (4, 0.125, 40, 0)
    norm = run.correlations["variance_sqrt_l1"]
    assert norm is not None and norm.r < -0.4, "the ratio is high where number % 10 is 0"
    assert run.correlations["variance_sqrt_abs_max"] is None, "it never changes"


def test_an_older_file_has_fewer_records(tmp_path: Path) -> None:
    run = read_run("a", write_run(tmp_path, [step(1), step(2)]))
    assert run.clock("flops") is None and run.clock("tokens") is not None
    assert not run.has("loss_ratio") and run.has("loss")
    assert (run.spikes, run.spike_score, run.discarded) == (None, None, None)
    assert run.evaluations == () and math.isnan(run.end[2])


def test_flops_that_only_the_later_steps_have_are_no_axis(tmp_path: Path) -> None:
    assert read_run("a", write_run(tmp_path, [step(1), stable_step(2)])).clock("flops") is None


def test_nulls_are_gaps(tmp_path: Path) -> None:
    records = [step(1), step(2, loss=None, grad_norm=None), step(3), evaluation(3, None), evaluation(3, 2.0)]
    run = read_run("a", write_run(tmp_path, records))
    assert run.counts("loss").tolist() == [1, 0, 1] and math.isnan(run.mean("loss")[1])
    assert [loss for _, loss in run.evaluations] == [2.0]


def test_resumes_and_growth_are_marked_between_steps(tmp_path: Path) -> None:
    records = [step(1, grown_from="runs/small"), step(2), step(3, resumed=True)]
    run = read_run("a", write_run(tmp_path, records))
    assert [(mark.text, mark.position[:2]) for mark in run.marks] == [
        ("grown from runs/small", (1, 100)),
        ("resumed", (2, 200)),
    ]
    assert run.resumes == 1


def test_a_file_that_begins_in_the_middle_is_marked_there(tmp_path: Path) -> None:
    run = read_run("a", write_run(tmp_path, [step(3151, resumed=True), step(3152)]))
    assert run.first_step == 3151 and run.marks[0].position[:2] == (3151, 315_100)


def test_a_run_resumed_all_the_time_has_few_marks(tmp_path: Path) -> None:
    run = read_run("a", write_run(tmp_path, [step(n, resumed=True) for n in range(1, 100)]))
    assert len(run.marks) == MAX_MARKS and run.resumes == 99


def test_scores_come_from_files_and_from_the_last_evaluation(tmp_path: Path) -> None:
    write_run(tmp_path, [step(1), evaluation(1, 3.0, lambada=0.1), step(2), evaluation(2, 2.0, lambada=0.2)])
    folder = tmp_path / "evaluation"
    folder.mkdir()
    figures = {"step": 2, "documents": 3, "bytes": 90, "tokens": 30, "loss": 2.5, "bits_per_byte": 1.1, "ok": True}
    (folder / "held_out.json").write_text(json.dumps(figures))
    (folder / "tasks.json").write_text(json.dumps({"hellaswag": {"acc": 0.3, "acc_norm": 0.4}}))
    assert read_run("a", tmp_path).scores == {
        "lambada": 0.2,
        "held_out loss": 2.5,
        "held_out bits_per_byte": 1.1,
        "tasks hellaswag acc": 0.3,
        "tasks hellaswag acc_norm": 0.4,
    }


def test_scores_of_tasks_are_each_tasks_last(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [{"step": 1, "tokens": 100, "scores": {"lambada": {"examples": 9, "accuracy": 0.1}}}]
    lines += [step(2), {"step": 2, "tokens": 200, "scores": {"wiki": {"loss": 2.0, "words": 7, "perplexity": None}}}]
    lines += [step(3), {"step": 3, "tokens": 300, "scores": {"lambada": {"examples": 9, "accuracy": 0.2}}}]
    run = read_run("a", write_run(tmp_path, [step(1), *lines]))
    assert run.scores == {"lambada accuracy": 0.2, "wiki loss": 2.0}
    assert (run.end[0], run.evaluations) == (3, ())


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "no step yet"),
        ([step(1), {"step": 1, "scores": [1]}], "line 2: scores must be an object"),
        ([step(1), {"step": 1, "scores": {"a": {"b": 10**400}}}], "line 2: b is too large"),
        ([step(1), {"step": 1, "scores": {str(n): 0.5 for n in range(99)}}], "line 2: at most 40 scores"),
        ([evaluation(1, 2.0)], "no step yet"),
        ([step(1), step(1)], "line 2: step is 1 after 1: is this the file of two runs"),
        ([step(2), step(1)], "line 2: step is 1 after 2"),
        ([step(1), step(2, tokens=1)], "line 2: tokens is 1 after 100"),
        ([step(1, loss="3")], 'line 1: loss must be a number, not "3"'),
        ([step(1, loss=True)], "line 1: loss must be a number, not true"),
        ([step(1, grad_norm=10**400)], "line 1: grad_norm is too large"),
        ([step(1) | {"step": 10**120}], "line 1: step is too large"),
        ([step(1), evaluation(1, [2])], "line 2: val_loss must be a number"),  # type: ignore[arg-type]
    ],
)
def test_a_file_that_no_run_wrote_is_a_sentence(tmp_path: Path, records: list[Any], message: str) -> None:
    write_run(tmp_path, records)
    with pytest.raises(ConfigError) as error:
        read_run("a", tmp_path)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_damaged_evaluation_is_named(tmp_path: Path) -> None:
    write_run(tmp_path, [step(1)])
    folder = tmp_path / "evaluation"
    folder.mkdir()
    (folder / "x.json").write_text("{")
    with pytest.raises(ConfigError, match="x.json: is not JSON"):
        read_run("a", tmp_path)
    (folder / "x.json").write_text(json.dumps({f"task {n}": 0.5 for n in range(99)}))
    with pytest.raises(ConfigError, match="99 scores"):
        read_run("a", tmp_path)


def test_evaluations_do_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(series, "MAX_EVALUATIONS", 2)
    records = [step(1), evaluation(1, 3.0), evaluation(1, 3.0), evaluation(1, 3.0)]
    with pytest.raises(ConfigError, match="line 4: a page takes at most 2 evaluations"):
        read_run("a", write_run(tmp_path, records))


def test_names_of_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("a/run", "b/run", "odd=name"):
        write_run(tmp_path / folder, [step(1)])
    monkeypatch.chdir(tmp_path)
    assert [run.name for run in read_runs(["a/run", "other=b/run", "odd=name"])] == ["run", "other", "odd=name"]
    monkeypatch.chdir(tmp_path / "a" / "run")
    assert [run.name for run in read_runs(["."])] == ["run"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a/run", "b/run"], 'a/run and b/run are both called "run": name one of them, as in other=b/run'),
        (["a/run", "a/run"], "both called"),
        (["nowhere"], "nowhere/metrics.jsonl does not exist: give the run directory"),
        (["x=nowhere"], "nowhere/metrics.jsonl does not exist"),
        (["a/run"] * 6, "at most 5 runs, not 6: leave some out"),
    ],
)
def test_runs_that_cannot_stand_on_one_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    for folder in ("a/run", "b/run"):
        write_run(tmp_path / folder, [step(1)])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as error:
        read_runs(arguments)
    assert message in str(error.value)
