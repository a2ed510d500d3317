"""The tool: a checkpoint in, a larger one out, which every layout resumes; nothing half-made, nothing impossible."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_slw.checkpoint.inference import load_model
from megatron_slw.checkpoint.load import Checkpoint
from megatron_slw.config.load import load_config, resolve
from megatron_slw.config.schema import RunConfig
from megatron_slw.config.write import to_tree
from megatron_slw.growth import grow
from megatron_slw.growth.operators.names import split_name
from megatron_slw.progress import Progress
from megatron_slw.testing import WorkerPool, tiny_config, write_tiny_dataset
from megatron_slw.train.learning_rate import learning_rate
from tests.checkpoint import jobs
from tools import grow_checkpoint

TP2, PP2 = {"tensor": 2}, {"pipeline": 2}
LAYOUTS: dict[str, dict[str, Any]] = {
    "one": {},
    "dp2-zero1": {"world_size": 2, "zero_stage": 1},
    "dp2-zero3": {"world_size": 2, "zero_stage": 3},
    "tp2": {"world_size": 2, "parallel": TP2},
    "tp2-pp2": {"world_size": 4, "parallel": TP2 | PP2},
    "pp2-zero1": {"world_size": 2, "parallel": PP2, "zero_stage": 1},
    "dp2-zero2-bf16": {"world_size": 2, "zero_stage": 2, "precision": "bf16"},
}
STEP = 5


def config_for(folder: Path, run: str, **changes: Any) -> RunConfig:
    """A constant length, so that ten steps may follow; clipping is active."""
    settings: dict[str, Any] = {"training__train_steps": 30, "curriculum": None, "optimizer__lr": 3e-3}
    return tiny_config(folder, logging__directory=str(folder / run), **(settings | changes))


@pytest.fixture(scope="module")
def small(pool: WorkerPool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and a run that stopped after STEP steps."""
    folder = tmp_path_factory.mktemp("small")
    write_tiny_dataset(folder / "data")
    pool.run(jobs.run, 1, (config_for(folder, "small", training__lr_decay_style="cosine"), STEP, (STEP,)))
    return folder


def grown(small: Path, target: Path, *flags: str) -> int:
    load = small / "small" / "checkpoints" / f"step_{STEP:06d}"
    save = target / "checkpoints" / f"step_{STEP:06d}"
    return grow_checkpoint.main(["--load", str(load), "--save", str(save), *flags])


def layout(config: RunConfig, **changes: Any) -> RunConfig:
    """The configuration of a grown run on other ranks, as the command line would make it."""
    tree = to_tree(config)
    parallel = changes.get("parallel", {})
    tree["megatron_slw"]["parallel"] |= parallel
    if "precision" in changes:
        tree[changes["precision"]] = {"enabled": True}
    tree["zero_optimization"] = {"stage": changes.get("zero_stage", 0)}
    return resolve(tree, changes.get("world_size", 1))


@pytest.mark.parametrize("target", LAYOUTS)
def test_every_layout_resumes_the_grown_checkpoint(pool: WorkerPool, small: Path, tmp_path: Path, target: str) -> None:
    """With the derived file, at its step, with its state bit for bit; all layouts go on alike."""
    assert grown(small, tmp_path, "--depth", "2", "--width", "2") == 0
    config = layout(load_config(tmp_path / "ds_config.json"), **LAYOUTS[target])
    saved = jobs.read_logical(tmp_path / "checkpoints" / f"step_{STEP:06d}")
    results = pool.run(jobs.run, config.world_size, (config, STEP + 3))
    for result in results:
        assert result["start"].step == STEP, "the grown checkpoint was not resumed"
        for key, value in result["restored"].items():
            kind, name, start = key.split("/")
            logical = torch.from_numpy(saved[f"{kind}/{name}"])
            for dim in range(logical.dim()):
                logical = logical.narrow(
                    dim, int(start) if logical.shape[dim] != value.shape[dim] else 0, value.shape[dim]
                )
            assert torch.equal(logical, torch.from_numpy(value)), f"{key} was not restored bit for bit"
    if target != "one":
        return
    model = load_model(tmp_path / "checkpoints" / f"step_{STEP:06d}").model
    assert sum(p.numel() for p in model.parameters()) > 4 * 38_784


@pytest.mark.parametrize("target", ["one", "tp2-pp2", "dp2-zero1", "dp2-zero3"])
def test_exact_dynamics_train_on_like_the_small_model(
    pool: WorkerPool, small: Path, tmp_path: Path, target: str
) -> None:
    """Through engine, clipping and checkpoint, in fp32; a second resume still has the factors."""
    flags = ("--width", "2", "--dynamics", "exact", "--operator", "clone")
    assert grown(small, tmp_path, *flags) == 0
    config = layout(load_config(tmp_path / "ds_config.json"), **LAYOUTS[target])
    middle = pool.run(jobs.run, config.world_size, (config, STEP + 5, (STEP + 4,)))
    last = pool.run(jobs.run, config.world_size, (config, STEP + 10))
    assert last[0]["start"].step == STEP + 4
    small_config = config_for(small, "small", training__lr_decay_style="cosine")
    straight = pool.run(jobs.run, 1, (small_config, STEP + 10))[0]["losses"]
    losses = middle[0]["losses"] | last[0]["losses"]
    for step, loss in straight.items():
        assert losses[step] == pytest.approx(loss, rel=2e-6), f"step {step}"


def test_two_stages_are_one_after_the_other(small: Path, tmp_path: Path) -> None:
    once = ("--depth", "2", "--noise", "off")
    assert grown(small, tmp_path / "a", *once, "--then", "--width", "2", "--noise", "off") == 0
    assert grown(small, tmp_path / "b", *once) == 0
    load = tmp_path / "b" / "checkpoints" / f"step_{STEP:06d}"
    save = tmp_path / "c" / "checkpoints" / f"step_{STEP:06d}"
    flags = ["--load", str(load), "--save", str(save), "--width", "2", "--noise", "off", "--position", "1"]
    assert grow_checkpoint.main(flags) == 0
    first = jobs.read_logical(tmp_path / "a" / "checkpoints" / f"step_{STEP:06d}")
    second = jobs.read_logical(save)
    assert all((first[key] == second[key]).all() for key in first), "two stages at once are not two growths"
    record = Checkpoint(save).growth
    assert record is not None
    assert len(record.history) == 2


def test_retarget_moves_the_schedule_and_warms_up_again(small: Path, tmp_path: Path) -> None:
    assert grown(small, tmp_path, "--width", "2", "--optimizer.params.lr=1e-3", "--rewarmup-steps", "4") == 0
    checkpoint = Checkpoint(tmp_path / "checkpoints" / f"step_{STEP:06d}")
    record, tokens = checkpoint.growth, checkpoint.progress.tokens
    assert record is not None
    assert record.lr_shift_tokens == tokens - round(0.563 * tokens)
    assert checkpoint.config.optimizer.lr == 1e-3
    rates = [learning_rate(checkpoint.config, checkpoint.plan, STEP + i, record) for i in range(6)]
    assert rates[0] < rates[1] < rates[2] < rates[3] < 1e-3
    assert rates[4] > rates[5], "after the warmup the decay goes on"


def test_a_longer_position_table_begins_another_stage(pool: WorkerPool, small: Path, tmp_path: Path) -> None:
    """Lengths of the steps trained would be others, so the clock begins again with what is left."""
    assert grown(small, tmp_path, "--seq-length", "64") == 0
    checkpoint = Checkpoint(tmp_path / "checkpoints" / f"step_{STEP:06d}")
    assert checkpoint.progress == Progress()
    assert checkpoint.plan.total_steps == 30 - STEP
    config = load_config(tmp_path / "ds_config.json")
    assert config.training.seed == 1235
    assert config.model.seq_length == 64
    result = pool.run(jobs.run, 1, (config, 2, ()))[0]
    assert len(result["losses"]) == 2


def test_the_derived_file_describes_the_saved_configuration(small: Path, tmp_path: Path) -> None:
    assert grown(small, tmp_path, "--width", "2") == 0
    saved = Checkpoint(tmp_path / "checkpoints" / f"step_{STEP:06d}").config
    assert load_config(tmp_path / "ds_config.json") == saved


def test_a_grown_run_does_not_end_where_its_first_stage_did(small: Path, tmp_path: Path) -> None:
    name = f"step_{STEP:06d}"
    flags = ["--training.grow_when=auto", "--evaluation.interval=5"]
    assert grown(small, tmp_path / "one", "--width", "2", *flags) == 0
    first = tmp_path / "one" / "checkpoints" / name
    assert Checkpoint(first).config.training.grow_when == "auto"
    second = tmp_path / "two" / "checkpoints" / name
    assert grow_checkpoint.main(["--load", str(first), "--save", str(second), "--depth", "2"]) == 0
    assert Checkpoint(second).config.training.grow_when is None


def test_files_of_another_request_are_not_taken(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt("killed")

    monkeypatch.setattr(grow, "compare", killed)
    with pytest.raises(KeyboardInterrupt):
        grown(small, tmp_path, "--width", "2", "--seed", "1")
    monkeypatch.undo()
    assert grown(small, tmp_path, "--width", "2", "--seed", "2") == 0
    assert grown(small, tmp_path / "straight", "--width", "2", "--seed", "2") == 0
    first = jobs.read_logical(tmp_path / "checkpoints" / f"step_{STEP:06d}")
    second = jobs.read_logical(tmp_path / "straight" / "checkpoints" / f"step_{STEP:06d}")
    assert all((first[key] == second[key]).all() for key in first)


@pytest.mark.parametrize("family", ["self_attention.dense.weight", "final_layernorm.weight"])
def test_verification_refuses_a_wrong_growth_and_leaves_nothing(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], family: str
) -> None:
    original = grow.GrownTensors.tensor

    def wrong(self: Any, key: str) -> torch.Tensor:
        tensor = original(self, key)
        return tensor * 1.001 if split_name(key.split("/", 1)[1])[1] == family else tensor

    monkeypatch.setattr(grow.GrownTensors, "tensor", wrong)
    assert grown(small, tmp_path, "--width", "2") == 1
    assert "is not the old one" in capsys.readouterr().err
    assert list((tmp_path / "checkpoints").iterdir()) == []
    assert not (tmp_path / "ds_config.json").exists()


def test_stacking_prints_both_losses_and_is_kept(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert grown(small, tmp_path, "--depth", "2", "--depth-operator", "stack") == 0
    said = capsys.readouterr()
    assert "do not preserve the loss" in said.err
    assert "loss before" in said.out


REFUSED: dict[str, tuple[list[str], str]] = {
    "nothing": ([], "nothing to grow"),
    "no whole layers": (["--depth", "1.25"], "Use --layers 2"),
    "heads do not fit": (["--hidden-size", "44"], "Use 40 or 48"),
    "fewer heads": (["--width", "2", "--heads", "2"], "cannot shrink"),
    "smaller heads": (["--width", "2", "--heads", "16"], "Use at most 8"),
    "less feed-forward": (["--ffn", "64"], "cannot shrink"),
    "shorter": (["--seq-length", "16"], "cannot shrink"),
    "twice": (["--depth", "2", "--layers", "4"], "both given"),
    "exact with layers": (["--depth", "2", "--width", "2", "--dynamics", "exact"], "new layers learn"),
    "exact with a rest": (["--hidden-size", "48", "--dynamics", "exact"], "whole copies"),
    "exact with length": (["--seq-length", "64", "--dynamics", "exact"], "Use --dynamics retarget"),
    "a size as a setting": (["--width", "2", "--model.num_layers=3"], "model.num_layers 3"),
    "an unknown setting": (["--width", "2", "--model.hiden=3"], "hiden"),
    "no data": (["--width", "2", "--data", "nowhere"], "nothing to verify on"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_with_the_reason(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    flags, wanted = REFUSED[case]
    assert grown(small, tmp_path, *flags) == 2
    said = capsys.readouterr().err
    assert wanted in said, said
    assert not list(tmp_path.iterdir()), "something was left behind"


def test_a_run_with_checkpoints_is_not_written_into(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert grow_checkpoint.main(
        ["--load", str(small / "small" / "checkpoints" / f"step_{STEP:06d}"),
         "--save", str(small / "small" / "checkpoints" / "step_000099"), "--width", "2"]
    ) == 2  # fmt: skip
    assert "another run" in capsys.readouterr().err


def test_damage_of_the_source_leaves_nothing(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    copy = tmp_path / "copy" / "checkpoints" / f"step_{STEP:06d}"
    shutil.copytree(small / "small" / "checkpoints" / f"step_{STEP:06d}", copy)
    (tensors,) = copy.glob("*.safetensors")
    content = bytearray(tensors.read_bytes())
    content[-1] ^= 1
    tensors.write_bytes(bytes(content))
    flags = ["--load", str(copy), "--save", str(tmp_path / "large" / "checkpoints" / "step_000005"), "--width", "2"]
    assert grow_checkpoint.main(flags) == 2
    assert "SHA-256" in capsys.readouterr().err
    assert not list((tmp_path / "large" / "checkpoints").iterdir())


def test_json_of_a_damaged_record_is_refused(small: Path, tmp_path: Path) -> None:
    from megatron_slw.config.errors import ConfigError
    from megatron_slw.growth.operators.multiplier import Multiplier
    from megatron_slw.growth.record import GrowthRecord

    record = GrowthRecord(3, -5, 7, {"mlp.dense_h_to_4h.weight": Multiplier(lr=0.5)}, ("a line",))
    data = json.loads(json.dumps(record.to_json()))
    assert GrowthRecord.from_json(data) == record
    assert GrowthRecord.from_json(replace(record, multipliers={}).to_json()).multipliers == {}
    bad: list[dict[str, Any]] = [
        data | {"step": -1}, data | {"lr_shift_tokens": 0.5}, data | {"history": "x"}, data | {"more": 1},
        data | {"multipliers": {"nothing": {}}},
        data | {"multipliers": {"mlp.dense_h_to_4h.weight": {"lr": 0, "weight_decay": 1, "eps": 1, "gradient": 1}}},
        data | {"multipliers": {"mlp.dense_h_to_4h.weight": {"lr": 1}}},
    ]  # fmt: skip
    for value in bad:
        with pytest.raises(ConfigError, match="growth"):
            GrowthRecord.from_json(value)
