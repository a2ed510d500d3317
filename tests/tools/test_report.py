"""The report tool: a page, JSON, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.report.run_files import falling, step, write_run
from tools import report

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs in an empty working directory."""
    write_run(tmp_path / "runs" / "baseline", falling(60, 20, 5.0, 0.5))
    write_run(tmp_path / "runs" / "slw", falling(60, 20, 4.5, 0.5))
    monkeypatch.chdir(tmp_path)


def test_a_page_of_two_runs(capsys: Capture) -> None:
    assert report.main(["runs/baseline", "runs/slw"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("slw reached baseline’s best validation loss 4.000 with 33")
    assert lines[1].startswith("report.html") and lines[0] in Path("report.html").read_text()


def test_json_writes_no_page_unless_asked(capsys: Capture) -> None:
    assert report.main(["runs/baseline", "runs/slw", "--json", "--target-loss", "4.25"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["target_loss"] == 4.25
    assert [run["reached"]["steps"] for run in found["runs"]] == [50, 30]
    assert not list(Path().glob("*.html"))
    assert report.main(["runs/slw", "--json", "--output", "page.html"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"][0]["name"] == "slw" and Path("page.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["runs/none"], "runs/none/metrics.jsonl does not exist"),
        (["runs/empty"], "has no step yet"),
        (["runs/damaged"], "line 2 is no metrics record"),
        (["runs/slw", "runs/slw"], 'both called "slw"'),
        (["runs/slw", "--target-loss", "inf"], "--target-loss must be a finite number"),
        (["runs/slw", "--output", "none/report.html"], "change --output"),
        (["runs/slw", "--output", "runs"], "change --output"),
    ],
)
def test_refusals_are_one_line_and_leave_nothing(capsys: Capture, arguments: list[str], message: str) -> None:
    write_run(Path("runs/empty"), [])
    write_run(Path("runs/damaged"), [step(1)])
    with Path("runs/damaged/metrics.jsonl").open("a") as file:
        file.write("{\n" + json.dumps(step(2)) + "\n")
    assert report.main(arguments) == 2
    output = capsys.readouterr()
    assert message in output.err and output.err.count("\n") == 1 and output.out == ""
    assert [path.name for path in Path().iterdir()] == ["runs"]
