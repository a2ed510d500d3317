"""The campaign's own arithmetic: a fault that was not withstood is counted, named and replayable."""

from __future__ import annotations

import json
from pathlib import Path

from tests.faults.scoreboard import Scoreboard


def test_failed_injections_are_counted_and_named(tmp_path: Path) -> None:
    board = Scoreboard()
    board.add(4, "tests/faults/test_x.py::test_kill[seed-7]", False, 1)
    board.add(4, "tests/faults/test_x.py::test_kill[seed-8]", True, 1)
    board.add(8, "tests/faults/test_y.py::test_files", True, 300)
    text = "\n".join(board.lines())
    assert "test_kill[seed-7]" in text and "seed-8" not in text
    board.write(tmp_path / "faults.json", 12.3)
    rows = json.loads((tmp_path / "faults.json").read_text())["rows"]
    assert [(row["row"], row["tried"], row["passed"]) for row in rows] == [(4, 2, 1), (8, 300, 300)]
    assert rows[0]["failed"] == ["tests/faults/test_x.py::test_kill[seed-7]"]
