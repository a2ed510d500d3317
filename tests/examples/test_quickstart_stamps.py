"""A step runs again exactly when an input changed or an output is not what it wrote."""

from __future__ import annotations

from pathlib import Path

import pytest
from stamps import Facts, Stamps


class Work:
    """Writes a file and counts how often."""

    def __init__(self, path: Path) -> None:
        self.path, self.runs = path, 0

    def __call__(self) -> Facts:
        self.runs += 1
        self.path.write_text("made")
        return {"runs": self.runs}


def once(folder: Path, work: Work, inputs: dict[str, str] | None = None) -> tuple[Facts, bool]:
    """The step's facts, and whether it was done before."""
    stamp, before = Stamps(folder / "steps").once("step", inputs or {"a": "1"}, [work.path], work)
    return stamp.facts, before


def test_a_done_step_is_left_alone(tmp_path: Path) -> None:
    work = Work(tmp_path / "out")
    assert once(tmp_path, work) == ({"runs": 1}, False)
    assert once(tmp_path, work) == ({"runs": 1}, True)
    assert work.runs == 1


def test_changed_input_reruns(tmp_path: Path) -> None:
    work = Work(tmp_path / "out")
    once(tmp_path, work)
    for inputs in ({"a": "2"}, {"a": "2", "b": "1"}, {"b": "1"}):
        assert once(tmp_path, work, inputs)[1] is False
        assert once(tmp_path, work, inputs)[1] is True
    assert work.runs == 4


def test_changed_or_missing_output_reruns(tmp_path: Path) -> None:
    work = Work(tmp_path / "out")
    once(tmp_path, work)
    work.path.write_text("edited")
    assert once(tmp_path, work)[1] is False
    work.path.unlink()
    assert once(tmp_path, work)[1] is False
    assert once(tmp_path, work)[1] is True


@pytest.mark.parametrize("content", ["", "{", "[]", '{"inputs": {}}'])
def test_damaged_stamp_reruns(tmp_path: Path, content: str) -> None:
    work = Work(tmp_path / "out")
    once(tmp_path, work)
    (tmp_path / "steps" / "step.json").write_text(content)
    assert once(tmp_path, work)[1] is False


def test_a_step_that_fails_is_not_done(tmp_path: Path) -> None:
    work = Work(tmp_path / "out")
    once(tmp_path, work)

    def fail() -> Facts:
        raise OSError("no space")

    stamps = Stamps(tmp_path / "steps")
    with pytest.raises(OSError, match="no space"):
        stamps.once("step", {"a": "2"}, [work.path], fail)
    assert stamps.read("step") is None  # not the old one either: its outputs may be half overwritten
    assert once(tmp_path, work, {"a": "2"})[1] is False
