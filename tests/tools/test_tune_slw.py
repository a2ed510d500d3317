"""tools/tune_slw.py: what it chooses, costs, writes and refuses; kills; and once with the trainer itself."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_slw.config.errors import ConfigError
from megatron_slw.config.load import load_config
from megatron_slw.slw.compile import compile_plan
from megatron_slw.slw.tuning import Fluctuation, Probe
from megatron_slw.testing import write_tiny_dataset
from megatron_slw.train.estimate import flops_per_token, plan_flops
from megatron_slw.train.learning_rate import learning_rate
from megatron_slw.train.metrics import read_metrics
from megatron_slw.train.tune_display import TuneDisplay
from megatron_slw.train.tune_job import tune_job
from megatron_slw.train.tune_probe import Reading
from megatron_slw.train.tune_state import Result
from tools import tune_slw

ROOT = Path(__file__).resolve().parents[2]
TOOL = [sys.executable, str(ROOT / "tools" / "tune_slw.py")]
FAKE = ROOT / "tests" / "train" / "fake_trainer.py"
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A dataset and a configuration: 300 steps, LR warmup of 15, so probes of 50; lengths 8 to 64."""
    write_tiny_dataset(tmp_path / "data", documents=100)
    curriculum = {
        "min_difficulty": 16, "max_difficulty": 64, "schedule_type": "fixed_linear",
        "schedule_config": {"duration": 0.3, "difficulty_step": 8},
    }  # fmt: skip
    config: dict[str, Any] = {
        "train_batch_size": 4,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3}},
        "data_efficiency": {
            "data_sampling": {
                "curriculum_learning": {"enabled": True, "curriculum_metrics": {"seqlen_truncate": curriculum}}
            }
        },
        "megatron_slw": {
            "model": {"num_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "seq_length": 64,
                      "vocab_size": 300, "hidden_dropout": 0.0, "attention_dropout": 0.0},
            "data": {"path": str(tmp_path / "data"), "split": "80,20,0"},
            "training": {"train_steps": 300, "lr_warmup_steps": 15},
            "evaluation": {"samples": 4},
            "logging": {"directory": str(tmp_path / "run"), "tensorboard": False},
        },
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def arguments(folder: Path, *more: str, **surface: Any) -> list[str]:
    """A command line whose probes are made by the fake trainer."""
    if surface:
        (folder / "surface").write_text(json.dumps(surface))
    launcher = shlex.join([sys.executable, str(FAKE), str(folder / "surface")])
    given = ["--ds-config", str(folder / "config.json"), "--output", str(folder / "tuning"), "--launcher", launcher]
    return [*given, *more]


def started(folder: Path) -> list[tuple[int, int]]:
    """The probes that were started, in order."""
    lines = (folder / "surface.starts").read_text().splitlines()
    return [(int(start), int(duration)) for start, duration in map(str.split, lines)]


def chosen(folder: Path) -> tuple[int, int]:
    """What the written file says, as the trainer reads it."""
    curriculum = load_config(folder / "tuning" / "ds_slw.json").curriculum
    assert curriculum is not None and curriculum.duration is None, "not a plain schedule"
    return curriculum.min_difficulty, curriculum.total_curriculum_step or 0


def test_it_finds_the_corner_and_says_why(folder: Path, capsys: Capture) -> None:
    assert tune_slw.main(arguments(folder, least=12, most=130)) == 0
    out = capsys.readouterr().out
    assert chosen(folder) == (16, 125)
    assert "Start 16: the shortest that did not fluctuate; 8 rose to 2.69 x the best at step 25." in out
    assert "Duration 125: the longest that did not fluctuate; 150 rose to 2.69 x the best at step 25." in out
    assert re.search(r"^    8 +50 +2.691 +25  fluctuates, stopped after \d+ of 50 steps|fluctuates$", out, re.M), out
    assert started(folder) == [(8, 50), (16, 50), (16, 150), (16, 100), (16, 125)]
    assert len(re.findall(r"^probe (\d) of at most 6", out, re.M)) == 5
    block = json.loads(out[out.index("{\n") : out.rindex("}\n") + 2])
    tree = json.loads((folder / "tuning" / "ds_slw.json").read_text())
    assert block == {"data_efficiency": tree["data_efficiency"]}
    expected = json.loads((folder / "config.json").read_text())
    (metric,) = expected["data_efficiency"]["data_sampling"]["curriculum_learning"]["curriculum_metrics"].values()
    metric["min_difficulty"] = 16
    metric["schedule_config"] = {"total_curriculum_step": 125, "difficulty_step": 8}
    assert tree == expected, "more was changed than the schedule"


def test_a_probe_is_the_real_run_stopped_early(folder: Path) -> None:
    """Learning rate, its decay, batch and data of every probe are those of the run with that schedule."""
    assert tune_slw.main(arguments(folder, "--optimizer.params.lr=0.002", least=8, most=10**6)) == 0
    for start, duration in started(folder):
        probe = load_config(folder / "tuning" / "probes" / f"min{start}_over{duration}" / "ds_config.json")
        overrides = [
            "--optimizer.params.lr=0.002", f"--curriculum.min_difficulty={start}", "--curriculum.duration=null",
            f"--curriculum.total_curriculum_step={duration}",
        ]  # fmt: skip
        run = load_config(folder / "config.json", overrides)
        assert compile_plan(probe) == compile_plan(run)
        for name in ("model", "data", "training", "optimizer", "curriculum", "train_batch_size", "gradient_clipping"):
            assert getattr(probe, name) == getattr(run, name), name
        assert probe.evaluation.samples == 4 and probe.evaluation.interval == 1
    assert not list((folder / "tuning").rglob("checkpoints")), "a probe left its checkpoints"


def test_costs_are_the_arithmetic_of_the_plans(folder: Path, capsys: Capture) -> None:
    assert tune_slw.main(arguments(folder, "--dry-run")) == 0
    out = capsys.readouterr().out
    assert not (folder / "tuning").exists(), "a dry run wrote something"
    config = load_config(folder / "config.json")
    run = plan_flops(config.model, compile_plan(config))

    def cost(start: int, duration: int) -> int:
        total = 0
        for step in range(1, 51):  # a ramp, step by step
            length = max(start, (start + step * (64 - start) // duration) // 8 * 8)
            total += 4 * min(length, 64) * flops_per_token(config.model, min(length, 64))
        return total + 50 * 4 * 64 * flops_per_token(config.model, 64) // 3

    smooth = [(8, 50), (8, 150), (8, 200), (8, 225)]
    assert f"4 probes and {100 * sum(cost(*probe) for probe in smooth) / run:.3g} % of the run's" in out
    rough = [(8, 50), (16, 50), (32, 50), (32, 150), (32, 100), (32, 75)]
    assert f"at most 6 probes and {100 * sum(cost(*probe) for probe in rough) / run:.3g} %" in out
    for start, duration in [(8, 50), (16, 50), (32, 50), (8, 75), (8, 225), (8, 240)]:
        line = rf"^ *{start} +{duration} .* {100 * cost(start, duration) / run:.3g} %$"
        assert bool(re.search(line, out, re.M)) == (duration != 240), (line, out)


def test_a_stopped_probe_costs_what_it_trained(folder: Path, capsys: Capture) -> None:
    assert tune_slw.main(arguments(folder, "--probe-steps=300", least=8, most=1)) == 1
    job = tune_job(folder / "config.json", steps=300)
    probes = json.loads((folder / "tuning" / "tuning.json").read_text())["probes"]
    tried = [(Probe(p["min_difficulty"], p["total_curriculum_step"]), p["steps"]) for p in probes]
    flops = sum(job.probe_cost(probe, steps)[1] for probe, steps in tried)
    share = f"{len(probes)} probes cost {100 * flops / job.run_flops():.3g} % of the run's FLOPs."
    assert share in capsys.readouterr().out


@pytest.mark.parametrize("words", ["step 25: the loss is not finite", "Current loss scale already at minimum"])
def test_nothing_stable_says_what_to_do_and_has_its_own_status(folder: Path, capsys: Capture, words: str) -> None:
    assert tune_slw.main(arguments(folder, least=100, most=1, diverge=words)) == 1
    out = capsys.readouterr().out
    assert "Lower optimizer.params.lr" in out and not (folder / "tuning" / "ds_slw.json").exists()
    assert "diverges, stopped after 25 of 50 steps" in out


def test_everything_stable_takes_the_longest(folder: Path, capsys: Capture) -> None:
    assert tune_slw.main(arguments(folder, least=1, most=10**6)) == 0
    assert chosen(folder) == (8, 225)
    out = capsys.readouterr().out
    assert "the shortest there is" in out and "80 % of the run" in out


def test_done_already_is_said_again_without_training(folder: Path, capsys: Capture) -> None:
    command = arguments(folder, least=12, most=130)
    assert tune_slw.main(command) == 0
    first = capsys.readouterr().out
    count = len(started(folder))
    assert tune_slw.main(command) == 0
    second = capsys.readouterr().out
    assert len(started(folder)) == count
    assert first[first.index("start  duration") :] == second[second.index("start  duration") :]


def test_a_launcher_of_more_ranks_than_was_said_cannot_change_the_batch(folder: Path) -> None:
    """With micro-batch and accumulation alone it would: the trainer then refuses, as rank counts do not work out."""
    batch = ["--train_batch_size=null", "--train_micro_batch_size_per_gpu=2", "--gradient_accumulation_steps=3"]
    job = tune_job(folder / "config.json", batch)
    path = folder / "probe.json"
    path.write_text(json.dumps(job.probe_tree(Probe(8, 50), folder / "run")))
    assert load_config(path).train_batch_size == 6
    with pytest.raises(ConfigError, match="train_batch_size"):
        load_config(path, world_size=2)


class Terminal(io.StringIO):
    """Says that it is one."""

    def isatty(self) -> bool:
        return True


def test_on_a_terminal_one_line_is_redrawn_and_leaves_only_results(folder: Path) -> None:
    job, stream = tune_job(folder / "config.json"), Terminal()
    display = TuneDisplay(job, stream)
    display.begin(Probe(8, 50), [])
    for steps in (0, 10, 20):
        display.watch(Reading(steps, Fluctuation(1.125, 6, False), False))
    display.end(Result(8, 50, True, 1.125, 6, 50))
    shown = [line.rpartition("\r\x1b[K")[2] for line in stream.getvalue().split("\n")]
    assert shown == ["probe 1 of at most 6: start 8, duration 50", "    8        50        1.125        6  stable", ""]
    assert "  step 20/50 | worst ratio 1.12 | 0:0" in stream.getvalue()


def launch(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*TOOL, *command], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)


def paused(folder: Path, count: int) -> Callable[[], bool]:
    """Whether the `count`-th probe waits before its last validation."""

    def found() -> bool:
        if not (folder / "surface.starts").exists() or len(started(folder)) < count:
            return False
        start, duration = started(folder)[-1]
        metrics = folder / "tuning" / "probes" / f"min{start}_over{duration}" / "run" / "metrics.jsonl"
        return metrics.exists() and '"step": 49, "val' in metrics.read_text()

    return found


def test_kill_9_of_the_tuner_leaves_a_probe_that_the_next_start_takes_over(folder: Path) -> None:
    pause = folder / "pause"
    pause.touch()
    command = arguments(folder, least=12, most=130, pause=str(pause))
    tuner = launch(command)
    wait_until(paused(folder, 2))  # the first probe is stopped for its fluctuation
    tuner.kill()
    tuner.communicate()
    again = launch(command)
    wait_until((folder / "tuning" / "tuning.json").exists)
    pause.unlink()
    out, _ = again.communicate(timeout=240)
    assert again.returncode == 0, out
    assert started(folder) == [(8, 50), (16, 50), (16, 150), (16, 100), (16, 125)], "a probe was made twice"
    assert chosen(folder) == (16, 125)


def test_kill_9_of_everything_makes_the_last_probe_again(folder: Path) -> None:
    pause = folder / "pause"
    pause.touch()
    command = arguments(folder, least=12, most=130, pause=str(pause))
    tuner = launch(command)
    wait_until(paused(folder, 2))
    for pid in children(tuner.pid):
        os.kill(tuner.pid, signal.SIGKILL)
        os.killpg(pid, signal.SIGKILL)
    tuner.communicate()
    pause.unlink()
    assert tune_slw.main(command) == 0
    assert started(folder) == [(8, 50), (16, 50), (16, 50), (16, 150), (16, 100), (16, 125)]
    assert chosen(folder) == (16, 125)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_probe_and_says_that_the_same_command_goes_on(folder: Path, number: int) -> None:
    pause = folder / "pause"
    pause.touch()
    command = arguments(folder, least=1, most=10**6, pause=str(pause))
    tuner = launch(command)
    wait_until(paused(folder, 1))
    (probe,) = children(tuner.pid)
    tuner.send_signal(number)
    out, _ = tuner.communicate(timeout=240)
    assert tuner.returncode == 0 and out.rstrip().endswith("the same command goes on where it was."), out
    assert not Path(f"/proc/{probe}").exists(), "the probe trains on"


def test_two_tuners_in_one_directory_are_one_too_many(folder: Path, capsys: Capture) -> None:
    pause = folder / "pause"
    pause.touch()
    command = arguments(folder, least=1, most=10**6, pause=str(pause))
    tuner = launch(command)
    wait_until(paused(folder, 1))
    assert tune_slw.main(command) == 2
    assert "in use by another tuner" in capsys.readouterr().err
    pause.unlink()
    out, _ = tuner.communicate(timeout=240)
    assert tuner.returncode == 0, out


def test_a_file_system_without_locks_will_do(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", none)
    assert tune_slw.main(arguments(folder, least=12, most=130)) == 0
    assert chosen(folder) == (16, 125)


def test_a_probe_that_fails_is_no_fluctuation(folder: Path, capsys: Capture) -> None:
    assert tune_slw.main(arguments(folder, fail=[1, "the disk is full"])) == 1
    assert "the disk is full" in capsys.readouterr().err
    assert json.loads((folder / "tuning" / "tuning.json").read_text())["probes"] == []
    assert tune_slw.main(arguments(folder, fail=[2, "parallel.tensor 3 does not fit"])) == 2
    assert capsys.readouterr().err == "parallel.tensor 3 does not fit\n"
    assert tune_slw.main(arguments(folder, least=1, most=10**6)) == 0, "what failed cannot be gone on with"


WRONG: dict[str, tuple[list[str], str]] = {
    "no curriculum": (["--curriculum.enabled=false"], "no curriculum to tune"),
    "another kind of schedule": (["--curriculum.schedule_type=mixed"], "schedule_type is mixed"),
    "no validation data": (["--data.split=100,0,0"], "valid"),
    "run shorter than a probe": (["--training.train_steps=40"], "fewer than a probe of 50"),
    "no learning-rate warmup": (["--training.lr_warmup_steps=null"], "--probe-steps"),
    "a run that begins with a checkpoint": (["--checkpoint.load=x/step_000001"], "checkpoint.load"),
    "probe of one step": (["--probe-steps=1"], "--probe-steps must be at least 2"),
    "no windows": (["--samples=0"], "--samples must be at least 1"),
    "limit that everything exceeds": (["--limit=1"], "--limit must be above 1"),
    "misspelt setting": (["--model.num_layer=3"], "Did you mean num_layers"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_input_is_one_sentence_and_nothing_is_written(folder: Path, capsys: Capture, kind: str) -> None:
    more, message = WRONG[kind]
    assert tune_slw.main(arguments(folder, *more, least=1, most=1)) == 2
    output = capsys.readouterr()
    assert message in output.err and output.err.count("\n") == 1 and output.out == ""
    assert not (folder / "tuning").exists() and not (folder / "surface.starts").exists()


def test_a_directory_of_something_else_is_left_alone(folder: Path, capsys: Capture) -> None:
    command = arguments(folder, least=1, most=10**6)
    assert tune_slw.main(command) == 0
    before = (folder / "tuning" / "tuning.json").read_bytes()
    for more, message in (
        (["--training.seed=7"], "megatron_slw.training.seed was null there and is 7 here"),
        (["--probe-steps=60"], "settings.probe_steps was 50 there and is 60 here"),
        (["--limit=1.5"], "settings.limit was 1.3 there and is 1.5 here"),
    ):
        assert tune_slw.main([*command, *more]) == 2
        assert message in capsys.readouterr().err
    assert (folder / "tuning" / "tuning.json").read_bytes() == before
    (folder / "tuning" / "tuning.json").unlink()
    assert tune_slw.main(command) == 2
    assert "is not empty and holds no tuning.json" in capsys.readouterr().err


DAMAGE: dict[str, Callable[[str], str]] = {
    "cut short": lambda text: text[: len(text) // 2],
    "a number for a truth value": lambda text: text.replace('"stable": true', '"stable": 1', 1),
    "of a later version": lambda text: text.replace('"version": 1', '"version": 2'),
    "steps below 0": lambda text: text.replace('"steps": 50', '"steps": -1', 1),
    "stable without a ratio": lambda text: re.sub(r'"worst_ratio": [^,]*', '"worst_ratio": null', text, count=1),
    "another field": lambda text: text.replace('"worst_step"', '"worst"', 1),
    "no list": lambda text: text.replace('"probes": [', '"probes": 1, "more": [', 1),
}


def test_a_damaged_state_is_refused_and_kept(folder: Path, capsys: Capture) -> None:
    command = arguments(folder, least=1, most=10**6)
    assert tune_slw.main(command) == 0
    state = folder / "tuning" / "tuning.json"
    good = state.read_text()
    capsys.readouterr()
    for kind, damage in DAMAGE.items():
        assert damage(good) != good, f"{kind}: the test damages nothing"
        state.write_text(damage(good))
        assert tune_slw.main(command) == 2, kind
        error = capsys.readouterr().err
        assert "tuning.json: " in error and error.count("\n") == 1, (kind, error)
        assert state.read_text() == damage(good), kind


def test_a_legacy_block_and_a_preset_are_tuned_too(folder: Path) -> None:
    path = folder / "config.json"
    tree = json.loads(path.read_text())
    del tree["data_efficiency"]
    tree["curriculum_learning"] = {"enabled": True, "curriculum_type": "seqlen", "preset": "slw", "max_difficulty": 64}
    path.write_text(json.dumps(tree))
    job = tune_job(path)
    assert job.chosen_tree(Probe(16, 75))["curriculum_learning"] == {
        **tree["curriculum_learning"], "min_difficulty": 16, "schedule_config": {"total_curriculum_step": 75},
    }  # fmt: skip


REAL = [  # one probe: 8 over 30
    "--probe-steps=30", "--training.train_steps=36", "--model.seq_length=16", "--curriculum.max_difficulty=16",
]  # fmt: skip


def test_the_trainer_itself_killed_and_gone_on_with(folder: Path) -> None:
    """The probe goes on from its own checkpoint, at the learning rates of the whole run, up to its last step."""
    command = ["--ds-config", str(folder / "config.json"), "--output", str(folder / "tuning"), *REAL]
    run = folder / "tuning" / "probes" / "min8_over30" / "run"
    tuner = launch(command)
    wait_until((run / "checkpoints" / "step_000007" / "manifest.json").exists)
    for pid in children(tuner.pid):
        os.kill(tuner.pid, signal.SIGKILL)
        os.killpg(pid, signal.SIGKILL)
    tuner.communicate()
    assert tune_slw.main(command) == 0
    steps, evaluations = read_metrics(run / "metrics.jsonl")
    assert [record["step"] for record in steps] == list(range(1, 31)), "a step is missing or twice"
    assert [record["step"] for record in evaluations] == list(range(1, 31))
    assert any(record.get("resumed") for record in steps), "it began again"
    chosen_run = load_config(folder / "tuning" / "ds_slw.json")
    plan = compile_plan(chosen_run)
    assert plan.total_steps == 36 and chosen(folder) == (8, 30)
    assert [record["lr"] for record in steps] == [learning_rate(chosen_run, plan, step) for step in range(30)]
    assert not (run / "checkpoints").exists(), "the checkpoints were left"


def test_a_nan_of_the_trainer_itself_is_a_divergence(folder: Path, capsys: Capture) -> None:
    more = [*REAL, "--optimizer.params.lr=1e12", "--probe-steps=150", "--training.train_steps=200"]
    command = ["--ds-config", str(folder / "config.json"), "--output", str(folder / "tuning"), *more]
    assert tune_slw.main(command) == 1
    (probe,) = json.loads((folder / "tuning" / "tuning.json").read_text())["probes"]
    assert (probe["stable"], probe["worst_ratio"], probe["worst_step"], probe["steps"]) == (False, None, 2, 1)
    assert "Lower optimizer.params.lr" in capsys.readouterr().out
