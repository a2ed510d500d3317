"""The quickstart in miniature under the real launcher, and what its steps do when something changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import growing
import pipeline
import pytest
import run
from pipeline import Quickstart, Settings

from megatron_slw.config.errors import ConfigError

STEPS, GROWN = 120, 72
CONFIG = Path(run.__file__).with_name("ds_slw.json")


def miniature(folder: Path) -> list[str]:
    """Flags for a run of seconds: its corpus and its configuration are written into `folder`."""
    lines = [f"def f{i}_{j}(x):\n    return x + {i * j % 7}\n" for i in range(100) for j in range(20)]
    texts = ["".join(lines[i : i + 20]) for i in range(0, len(lines), 20)]
    (folder / "my.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    tree: dict[str, Any] = json.loads(CONFIG.read_text())
    learning = tree["data_efficiency"]["data_sampling"]["curriculum_learning"]
    warmup = learning["curriculum_metrics"]["seqlen_truncate"]
    warmup.update(min_difficulty=8, max_difficulty=32)
    warmup["schedule_config"] = {"total_curriculum_step": STEPS // 2, "difficulty_step": 8}
    ours = tree["megatron_slw"]
    ours["model"].update(num_layers=1, hidden_size=32, num_attention_heads=2, seq_length=32)
    ours["training"].update(train_steps=STEPS, lr_warmup_steps=2)
    ours["evaluation"].update(interval=STEPS, samples=8)
    (folder / "mini.json").write_text(json.dumps(tree))
    grow = "--depth 2 --width 2 --rewarmup-steps 5"
    return ["--corpus", "my.jsonl", "--ds-config", "mini.json", "--vocab-size", "300", "--grow", grow]


def never(*_: object) -> None:
    """Stands for work that must not be done again."""
    raise AssertionError("a step that was done is done again")


def killed(*_: object) -> None:
    """Stands for a kill: nothing that follows is done."""
    raise Killed


class Killed(BaseException):
    """Not an error that the quickstart would speak of."""


def test_miniature_under_the_real_launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Killed once the model has grown, before that is noted down; then the same command to the end; then again."""
    monkeypatch.chdir(tmp_path)
    flags = miniature(tmp_path)
    folder = tmp_path / "runs" / "quickstart-my"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(growing, "grown_facts", killed)
        run.main(flags)
    assert [path.name for path in (folder / "grown" / "checkpoints").iterdir()] == [f"step_{GROWN:06d}"]
    assert run.main(flags) == 0, capfd.readouterr()
    shown = capfd.readouterr().out
    assert all(f"[{number}/8] {step}" in shown for number, step in enumerate(pipeline.STEPS, 1))
    assert shown.count("done before") == pipeline.STEPS.index("grow")
    summary = json.loads((folder / "summary.json").read_text())
    (resumed_at,) = summary["resumed_at_steps"]
    assert GROWN // 2 <= resumed_at < GROWN == summary["grown_at_step"] and summary["steps"] == STEPS
    assert (summary["small"], summary["large"]) == ("1 layers x 32", "2 layers x 64")
    assert summary["loss_after"] == pytest.approx(summary["loss_before"], rel=1e-6)
    assert f"loss before {summary['loss_before']:.5f}, after {summary['loss_after']:.5f}" in shown
    assert 0 < summary["flops"] < summary["flops_without_growth"]
    assert 0 < summary["val_bits_per_byte"] < summary["unigram_bits_per_byte"]
    assert {"gzip_bits_per_byte", "tokens", "tokens_per_s", "wall_s", "parameters", "val_loss"} <= set(summary)
    assert len(summary["samples"]) == 3
    assert all(Path(path).exists() for path in summary["files"].values())
    assert (folder / "report.png").read_bytes().startswith(b"\x89PNG")
    records = [json.loads(line) for line in (folder / "grown" / "metrics.jsonl").read_text().splitlines()]
    assert records[0]["step"] == GROWN + 1 and records[0]["grown_from"] == f"1 layers x 32 at step {GROWN}"

    monkeypatch.setattr(pipeline, "train", never)
    monkeypatch.setattr(pipeline, "run_tool", never)
    monkeypatch.setattr(pipeline.figures, "held_out_figures", never)
    assert run.main(flags) == 0
    assert capfd.readouterr().out.count("done before") == len(pipeline.STEPS)
    assert json.loads((folder / "summary.json").read_text()) == summary


def test_the_real_configuration_needs_no_override(tmp_path: Path) -> None:
    """What the quickstart runs is the command that the README shows."""
    quickstart = Quickstart(Settings(None, Path("data/quickstart"), Path("runs/quickstart"), CONFIG))
    training, config = quickstart.training(vocab_size=8192)
    assert training.overrides == ()
    assert training.shown_command.startswith("deepspeed --num_gpus 2 pretrain_gpt.py --ds-config ")
    assert training.shown_command.endswith(f" --stop-after {training.last_step}")
    assert config.curriculum is not None and config.data_parallel_size == 2
    moved = Quickstart(Settings(None, tmp_path, tmp_path / "run", CONFIG)).training(vocab_size=8192)[0]
    assert moved.overrides == (
        f"--data.path={tmp_path}/train_text_document",
        f"--data.valid_path={tmp_path}/held_out_text_document",
        f"--logging.directory={tmp_path}/run/small",
    )


@pytest.mark.parametrize("share", [0, 1, 0.0001])
def test_both_models_are_trained(tmp_path: Path, share: float) -> None:
    with pytest.raises(ConfigError, match=f"--grow-at {share:g} of "):
        Quickstart(Settings(None, tmp_path, tmp_path / "run", CONFIG, grow_at=share)).training(vocab_size=8192)


class Grown:
    """A larger run's directory, and the growth that would make it."""

    def __init__(self, folder: Path, *steps: int) -> None:
        self.growing = growing.Growing(folder / "small" / "step_000004", 4, folder / "grown", ("--depth", "2"))
        for step in steps:
            checkpoint = folder / "grown" / "checkpoints" / f"step_{step:06d}"
            checkpoint.mkdir(parents=True)
            (checkpoint / "manifest.json").write_text("{}")


def test_an_untrained_growth_is_made_again_and_a_trained_one_is_kept(tmp_path: Path) -> None:
    said: list[str] = []
    Grown(tmp_path / "a").growing.clear(said.append)
    Grown(tmp_path / "b", 4).growing.clear(said.append)
    assert said == [] and not (tmp_path / "b" / "grown").exists()
    Grown(tmp_path / "c", 4, 6).growing.clear(said.append)
    assert (tmp_path / "c" / "grown-before-1" / "checkpoints" / "step_000006").is_dir()
    assert len(said) == 1 and "grown-before-1" in said[0]


def test_a_run_of_other_text_is_set_aside_and_its_own_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "run"
    quickstart = Quickstart(Settings(None, tmp_path / "data", out, CONFIG))
    quickstart.set_other_run_aside({"train": "a"})
    (out / "small" / "checkpoints" / "step_000001").mkdir(parents=True)
    quickstart.set_other_run_aside({"train": "a"})
    assert (out / "small" / "checkpoints" / "step_000001").is_dir()
    quickstart.set_other_run_aside({"train": "b"})
    assert not (out / "small").exists()
    assert (tmp_path / "run-before-1" / "small" / "checkpoints" / "step_000001").is_dir()
    (out / "checkpoints").mkdir()
    (out / "steps" / "started.json").unlink()  # not a run of the quickstart at all
    quickstart.set_other_run_aside({"train": "b"})
    assert (tmp_path / "run-before-2" / "checkpoints").is_dir()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        ("", "the corpus has 0 different texts"),
        ('{"text": 3}\n', "line 1 has no text"),
        ('{"text": "one"}\n{"text": "two"}\n', "too short: its training text has"),
        ("[1]\n", "my.jsonl, line 1"),
    ],
)
def test_a_wrong_corpus_is_one_line_and_status_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    content: str | None,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / "my.jsonl").write_text(content)
    assert run.main(["--corpus", "my.jsonl"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "runs" / "quickstart-my" / "small").exists()


def test_a_tool_that_refuses_its_input_is_heard(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none.jsonl"):
        pipeline.run_tool("train_tokenizer", ["--input", "none.jsonl", "--vocab-size", 300, "--output", "x.json"])


def test_two_quickstarts_do_not_share_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.jsonl").write_text('{"text": 3}\n')
    with run.alone(Path("data/quickstart-my")):
        assert run.main(["--corpus", "my.jsonl"]) == 2
        assert "another quickstart is at work" in capsys.readouterr().err
    assert run.main(["--corpus", "my.jsonl"]) == 2
    assert "line 1 has no text" in capsys.readouterr().err
