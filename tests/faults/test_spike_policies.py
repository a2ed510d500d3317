"""training.on_spike and rerun, in whole runs: the same data and the same bits as a run that never met the fault."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_slw.checkpoint.format import complete_checkpoints
from megatron_slw.checkpoint.load import Checkpoint
from megatron_slw.checkpoint.skip_journal import NAME, read_journal
from megatron_slw.config.schema import RunConfig
from megatron_slw.slw.compile import compile_plan
from megatron_slw.slw.skipped import sample_ranges
from megatron_slw.testing import WorkerPool, tiny_config, write_tiny_dataset
from megatron_slw.train.metrics import FILE_NAME, read_events, read_metrics
from tests.faults import policy_jobs, spike_jobs
from tests.faults.test_refused_steps import LAYOUTS, MORE

STEPS = 16
ALL = ("one", "dp2", "tp2", "pp2", "zero1", "zero3", "zero1-bf16", "zero2-bf16", "tp2-pp2", "pp2-dp2-zero1-bf16")
DROPOUT = {"model__hidden_dropout": 0.1, "model__attention_dropout": 0.1}
TIMES = ("step_time_s", "tokens_per_s", "resumed")


def layouts(names: tuple[str, ...], *quick: str) -> list[Any]:
    """All of them in the campaign, some in the quick selection too."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.campaign) for name in names]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tiny_dataset(tmp_path / "data")
    return tmp_path


def config_for(folder: Path, run: str, layout: str = "one", **changes: Any) -> RunConfig:
    settings = {"training__train_steps": STEPS, "checkpoint__keep_last": 20} | DROPOUT | (LAYOUTS | MORE)[layout]
    config = tiny_config(folder, logging__directory=str(folder / run), **settings)
    tree = config.model_dump()
    for name, value in changes.items():
        section, _, field = name.partition("__")
        if field:
            tree[section][field] = value
        else:
            tree[section] = value
    return RunConfig.model_validate(tree)


def faults_of(config: RunConfig) -> dict[int, policy_jobs.Fault]:
    """A NaN in the loss of the last rank, and a spike in the gradient of the first."""
    return {5: ("nan", "loss", config.world_size - 1, 9), 10: ("spike", "gradient", 0, 9)}


def lines(folder: Path, run: str) -> list[dict[str, Any]]:
    """metrics.jsonl without what the clock on the wall decides."""
    text = (folder / run / FILE_NAME).read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in TIMES} for line in text]


def check_state(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    for rank, (after, plain) in enumerate(zip(found, expected, strict=True)):
        assert after["error"] == "", f"rank {rank}: {after['error']}"
        differing = spike_jobs.differing(plain["state"], after["state"])
        assert not differing, f"rank {rank}: {differing[:3]} differ"


def check_losses(folder: Path, run: str, expected: dict[int, float]) -> None:
    steps, _ = read_metrics(folder / run / FILE_NAME)
    assert {record["step"]: record["loss"] for record in steps} == expected


@pytest.mark.fault(9)
@pytest.mark.parametrize("layout", layouts(ALL, "one", "zero3"))
def test_skip_is_the_run_that_never_saw_the_batch(
    pool: WorkerPool, folder: Path, layout: str, injections: Callable[[int], None]
) -> None:
    """Also where it is killed after the decision and before the next save: the journal leaves the same steps out."""
    config = config_for(folder, "run", layout, training__on_spike="skip", checkpoint__interval=3)
    world = config.world_size
    injections(2)
    found = pool.run(policy_jobs.run, world, (config, faults_of(config)))
    expected = pool.run(policy_jobs.without, world, (config_for(folder, "other", layout), (5, 10), STEPS))
    check_state(found, expected)
    check_losses(folder, "run", expected[0]["losses"])
    before = lines(folder, "run")
    for path in complete_checkpoints(folder / "run" / "checkpoints")[1:]:  # what a kill at step 12 had not saved
        shutil.rmtree(path)
    again = pool.run(policy_jobs.run, world, (config,))  # the fault does not come again
    assert {result["start"] for result in again} == {3}, "it did not resume"
    check_state(again, expected)
    assert lines(folder, "run") == before, "another history"


@pytest.mark.fault(9)
@pytest.mark.parametrize("layout", layouts(ALL, "one", "pp2"))
def test_rollback_is_the_run_that_never_saw_the_window(
    pool: WorkerPool, folder: Path, layout: str, injections: Callable[[int], None]
) -> None:
    """Saved after 6, 9 and 12 steps; the step after 10 is bad: back to 9 in place, leaving out the steps 10 to 12.

    The same where the run is killed between the decision and the return, and goes on in another process.
    """
    changes = {"training__on_spike": "rollback", "training__rollback_steps": 4, "checkpoint__interval": 3}
    left_out = (9, 10, 11)  # 8 to 11, but the checkpoint has trained 8 already
    config = config_for(folder, "run", layout, **changes)
    world, fault = config.world_size, {10: ("spike", "gradient", config.world_size - 1, 9)}
    injections(2)
    found = pool.run(policy_jobs.run, world, (config, fault))
    expected = pool.run(policy_jobs.without, world, (config_for(folder, "other", layout), left_out, STEPS))
    check_state(found, expected)
    check_losses(folder, "run", expected[0]["losses"])
    killed = config_for(folder, "killed", layout, **changes)
    for result in pool.run(policy_jobs.run, world, (killed, fault, None, True)):
        assert result["error"].startswith("Killed"), result["error"]
    again = pool.run(policy_jobs.run, world, (killed,))
    assert {result["start"] for result in again} == {9}, "it did not resume"
    check_state(again, expected)
    assert lines(folder, "killed") == lines(folder, "run"), "another history"


@pytest.mark.fault(9)
@pytest.mark.parametrize(
    "asynchronous",
    [pytest.param(False, id="at once"), pytest.param(True, id="asynchronous", marks=pytest.mark.fault(11))],
)
def test_a_fault_right_after_a_save_and_a_second_one(
    pool: WorkerPool, folder: Path, injections: Callable[[int], None], asynchronous: bool
) -> None:
    """Two rollbacks, the second back beyond the first one's window, which stays left out.

    The first goes back to a checkpoint that is still being written in the background: it is waited for.
    """
    changes = {"training__on_spike": "rollback", "training__rollback_steps": 2, "checkpoint__interval": 6}
    changes["checkpoint__asynchronous"] = asynchronous
    config = config_for(folder, "run", **changes)
    injections(2)
    faults = {6: ("nan", "gradient", 0, 1), 9: ("spike", "loss", 0, 1)}
    found = pool.run(policy_jobs.run, 1, (config, faults))
    expected = pool.run(policy_jobs.without, 1, (config_for(folder, "other"), (6, 8, 9), STEPS))
    check_state(found, expected)
    check_losses(folder, "run", expected[0]["losses"])
    skips = read_journal(folder / "run" / "checkpoints").skips
    assert [(skip.first, skip.stop, skip.step, skip.back_to) for skip in skips] == [(6, 7, 6, 6), (8, 10, 9, 6)]
    last = complete_checkpoints(folder / "run" / "checkpoints")[-1]
    assert Checkpoint(last).state.skipped.skips == skips


@pytest.mark.fault(1)
@pytest.mark.parametrize("layout", layouts(("one", "dp2", "pp2", "tp2"), "one"))
def test_a_resume_right_after_a_skipped_step_is_exact(pool: WorkerPool, folder: Path, layout: str) -> None:
    config = config_for(folder, "run", layout, training__on_spike="skip")
    world = config.world_size
    straight = pool.run(policy_jobs.without, world, (config_for(folder, "other", layout), (5,), STEPS))
    stopped = pool.run(policy_jobs.run, world, (config, faults_of(config), 6))
    assert {result["progress"].step for result in stopped} == {6}
    check_state(pool.run(policy_jobs.run, world, (config,)), straight)
    check_losses(folder, "run", straight[0]["losses"])


def test_the_ledger_and_the_record_of_a_skipped_step(pool: WorkerPool, folder: Path) -> None:
    config = config_for(folder, "run", training__on_spike="skip")
    (result,) = pool.run(policy_jobs.run, 1, (config, faults_of(config)))
    plan = compile_plan(config)
    assert result["progress"] == plan.progress_at(STEPS), "the clock has not gone through"
    steps, _ = read_metrics(folder / "run" / FILE_NAME)
    trained = 0
    for record in steps:
        trained += plan.at(record["step"] - 1).tokens
        assert record["tokens"] == trained, record["step"]
        position = plan.progress_at(record["step"])
        assert record["tokens"] + record["tokens_discarded"] == position.samples * plan.full_length
    first, second = read_events(folder / "run" / FILE_NAME)
    for record, number in ((first, 5), (second, 10)):
        step = plan.at(number)
        assert (record["event"], record["step"], record["tokens_skipped"]) == ("skipped", number + 1, step.tokens)
        assert record["sample_ids"] == sample_ranges(step) == [[8 * number, 8 * number + 8]]
    assert first["reason"] == "the loss is not finite on rank 0" and first["loss"] is None
    assert second["reason"].startswith("the gradient norm") and "stands out" in second["reason"]
    assert second["grad_norm"] > 1e3 and second["loss"] < 10.0


@pytest.mark.fault(9)
@pytest.mark.parametrize("layout", layouts(("one", "dp2", "pp2"), "dp2"))
def test_stop_saves_nothing_of_the_step(pool: WorkerPool, folder: Path, layout: str) -> None:
    config = config_for(folder, "run", layout, training__on_spike="stop", checkpoint__interval=5)
    results = pool.run(policy_jobs.run, config.world_size, (config, {10: faults_of(config)[10]}))
    said = {result["error"] for result in results}
    assert len(said) == 1, "ranks tell different stories"
    (text,) = said
    assert text.startswith("StepRefused: step 11: the gradient norm") and "samples 80 to 87" in text, text
    saved = [path.name for path in complete_checkpoints(folder / "run" / "checkpoints")]
    assert saved == ["step_000005", "step_000010"]
    assert read_metrics(folder / "run" / FILE_NAME)[0][-1]["step"] == 10
    assert not (folder / "run" / "checkpoints" / NAME).exists()


def test_by_default_a_spike_is_trained_and_a_nan_stops(pool: WorkerPool, folder: Path) -> None:
    config = config_for(folder, "run")
    (result,) = pool.run(policy_jobs.run, 1, (config, {10: ("spike", "gradient", 0, 1)}))
    assert result["error"] == "" and read_events(folder / "run" / FILE_NAME) == []
    (result,) = pool.run(policy_jobs.run, 1, (config_for(folder, "second"), faults_of(config)))
    assert result["error"].startswith("NonFiniteError: step 6: the loss is not finite on rank 0"), result["error"]


@pytest.mark.fault(9)
@pytest.mark.parametrize("policy", [None, "stop", "skip", "rollback"])
@pytest.mark.parametrize("layout", layouts(("one", "dp2"), "one"))
def test_rerun_goes_on_from_a_passing_fault(pool: WorkerPool, folder: Path, layout: str, policy: str | None) -> None:
    """It happens once: the repeated step is the step of a run without the fault, whatever the policy."""
    changes = {"training__on_spike": policy, "training__rerun": True, "checkpoint__interval": 4}
    config = config_for(folder, "run", layout, **changes)
    faults = {number: (*fault[:3], 1) for number, fault in faults_of(config).items()}
    found = pool.run(policy_jobs.run, config.world_size, (config, faults if policy else {5: faults[5]}))
    expected = pool.run(policy_jobs.without, config.world_size, (config_for(folder, "other", layout), (), STEPS))
    check_state(found, expected)
    check_losses(folder, "run", expected[0]["losses"])
    assert not (folder / "run" / "checkpoints" / NAME).exists(), "a passing fault was written down"


@pytest.mark.fault(9)
def test_rerun_finds_a_lasting_fault(pool: WorkerPool, folder: Path) -> None:
    config = config_for(folder, "run", training__on_spike="skip", training__rerun=True)
    found = pool.run(policy_jobs.run, 1, (config, {5: ("nan", "loss", 0, 2)}))
    check_state(found, pool.run(policy_jobs.without, 1, (config_for(folder, "other"), (5,), STEPS)))


@pytest.mark.fault(9)
@pytest.mark.campaign
@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_a_run_that_only_skips_stops(pool: WorkerPool, folder: Path, policy: str) -> None:
    changes = {"training__on_spike": policy, "training__spike_limit": 3, "training__rollback_steps": 1}
    config = config_for(folder, "run", checkpoint__interval=2, **changes)
    faults = {number: ("nan", "loss", 0, 99) for number in range(4, STEPS)}
    (result,) = pool.run(policy_jobs.run, 1, (config, faults))
    assert result["error"].startswith("StepRefused: step 8: the loss is not finite"), result["error"]
    assert result["error"].endswith("fault number 4 within 1,000 steps, and training.spike_limit is 3.")


@pytest.mark.fault(9)
@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_loss_adaptive_pacing_goes_on_as_if_the_step_were_not(pool: WorkerPool, folder: Path, policy: str) -> None:
    """Its averages leave the step out, and a rollback takes them back too: what a later process does is the same."""
    changes = {
        "training__on_spike": policy, "training__rollback_steps": 2, "checkpoint__interval": 4,
        "curriculum": {
            "schedule_type": "loss_adaptive", "min_difficulty": 8, "max_difficulty": 32, "difficulty_step": 8,
            "patience": 2, "min_improvement": 0.0, "smoothing": 0.5,
        },
    }  # fmt: skip
    config = config_for(folder, "run", **changes)
    (found,) = pool.run(policy_jobs.run, 1, (config, {10: ("nan", "loss", 0, 9)}))
    before = lines(folder, "run")
    assert {line["seq_len"] for line in before} > {8}, "no decision was taken"
    for path in complete_checkpoints(folder / "run" / "checkpoints")[2:]:
        shutil.rmtree(path)
    (again,) = pool.run(policy_jobs.run, 1, (config,))
    assert again["start"] == 8 and lines(folder, "run") == before, "another history"
    check_state([again], [found])


def test_a_rollback_without_a_checkpoint_stops(pool: WorkerPool, folder: Path) -> None:
    config = config_for(folder, "run", training__on_spike="rollback", checkpoint__interval=12)
    (result,) = pool.run(policy_jobs.run, 1, (config, faults_of(config)))
    assert result["error"].endswith("There is no checkpoint to go back to yet; lower checkpoint.interval.")
    assert not (folder / "run" / "checkpoints" / NAME).exists()


def test_a_rollback_that_leaves_nothing_stops(pool: WorkerPool, folder: Path) -> None:
    config = config_for(folder, "run", training__on_spike="rollback", checkpoint__interval=2)
    (result,) = pool.run(policy_jobs.run, 1, (config, faults_of(config)))
    assert "leave out the steps 5 to 105, and with them all that is left of the run's 16" in result["error"]
    assert not (folder / "run" / "checkpoints" / NAME).exists()


@pytest.mark.parametrize("content", ["", "[]", '{"format": "x", "skipped": []}', '{"skipped": 1}', "\x00" * 9])
def test_a_damaged_journal_is_refused(tmp_path: Path, content: str) -> None:
    from megatron_slw.config.errors import ConfigError

    (tmp_path / NAME).write_text(content)
    with pytest.raises(ConfigError, match=r"skipped\.json: .* Restore it, or delete it"):
        read_journal(tmp_path)
