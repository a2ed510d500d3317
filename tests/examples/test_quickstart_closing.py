"""The closing words hold the figures, and samples cannot disturb a terminal."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import closing
import figures
import pytest
from rich.console import Console

SUMMARY: dict[str, Any] = {
    "corpus": {"name": "my.jsonl", "documents": 1200, "held_out": 60},
    "small": "2 layers x 96",
    "small_parameters": 1_034_880,
    "large": "4 layers x 192",
    "parameters": 3_401_856,
    "grown_at_step": 780,
    "loss_before": 5.25,
    "loss_after": 5.2500001,
    "flops": 8.8e12,
    "flops_without_growth": 11.2e12,
    "steps": 1300,
    "tokens": 1_914_624,
    "tokens_per_s": 6512.3,
    "train_s": 290.0,
    "wall_s": 340.0,
    "val_bits_per_byte": 1.7,
    "gzip_bits_per_byte": 1.9,
    "unigram_bits_per_byte": 4.8,
    "below_gzip": True,
    "files": {"summary": "runs/q/summary.json", "checkpoint": "runs/q/checkpoints/step_001300"},
    "samples": ["def f(\x1b[31mx):\n\n\n\treturn x" + "\nmore" * 20, "[bold]is no markup[/bold]"],
}


def printed(summary: dict[str, Any]) -> str:
    """What a log file of 80 columns gets."""
    console = Console(file=io.StringIO(), width=80, highlight=False)
    closing.print_closing(summary, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_figures_are_there() -> None:
    text = printed(SUMMARY)
    for part in ("1.700 bits/byte, below gzip -9: 1.900 (-10.5 %)", "1,300 steps", "6,512 tokens/s", "5:40", "1,200"):
        assert part in text, part
    assert "runs/q/summary.json" in text and "CORPUS=my.jsonl" in text
    assert "at step 780 to 4 layers x 192, 3.40 M" in text and "loss before 5.25000, after 5.25000" in text
    assert "NOT below gzip" in printed({**SUMMARY, "below_gzip": False})


def test_samples_are_short_and_harmless() -> None:
    text = printed(SUMMARY)
    assert "\x1b" not in text
    assert "[bold]is no markup[/bold]" in text
    assert text.count("more") == closing.SAMPLE_LINES - 2 + 1  # one in "more samples"


def test_way_into_the_environment_is_shown_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "base_prefix", "/usr")
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
    assert any(". .venv/bin/activate" in line for line in closing.next_commands("x"))
    monkeypatch.setattr(sys, "prefix", "/elsewhere")
    assert not any("activate" in line for line in closing.next_commands("x"))


def test_training_figures_count_every_resume_and_both_stages(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = []
    for step in range(1, 5):
        lines.append({"step": step, "tokens": 100 * step, "step_time_s": 0.5, "flops": 10 * step})
        if step == 3:
            lines[-1]["resumed"] = True
    lines.append({"step": 4, "tokens": 400, "val_loss": 4.5})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    small = figures.training_figures(tmp_path / "metrics.jsonl")
    assert (small["steps"], small["tokens"], small["tokens_per_s"], small["val_loss"]) == (4, 400, 200.0, 4.5)
    assert small["resumed_at_steps"] == [2]
    grown = [{"step": step, "tokens": 100 * step, "step_time_s": 1.0, "flops": 30 * step} for step in (5, 6)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in grown))
    after = figures.training_figures(tmp_path / "metrics.jsonl", tokens_before=400)
    assert (after["steps"], after["tokens_per_s"]) == (2, 100.0)
    both = figures.whole_run(small, after, {"flops_before": 120})
    assert (both["steps"], both["tokens"], both["train_s"], both["tokens_per_s"]) == (6, 600, 4.0, 150.0)
    assert (both["flops"], both["flops_without_growth"]) == (40 + 60, 180)
    assert both["resumed_at_steps"] == [2]


def test_prompt_of_a_text() -> None:
    assert figures.first_words("  one two\nthree  four five") == "one two three four"
    assert figures.first_words("x" * 100) == "x" * 40
