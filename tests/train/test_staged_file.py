"""STAGES.json: what it means, and what is wrong with it said before anything is started."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_slw.config.errors import ConfigError
from megatron_slw.train.staged_file import read_stages

CONFIG: dict[str, Any] = {
    "train_batch_size": 4,
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-3}},
    "megatron_slw": {
        "model": {"num_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "seq_length": 32, "vocab_size": 300},
        "data": {"path": "data"},
        "training": {"train_steps": 40, "lr_warmup_steps": 5},
        "evaluation": {"interval": 5},
        "logging": {"directory": "elsewhere"},
    },
}
STAGES: list[dict[str, Any]] = [
    {"until": "auto", "set": {"training.seed": 7}},
    {"grow": {"width": 2}, "set": {"optimizer.params.lr": 2e-3}, "until": {"tokens": 3000}},
    {"grow": {"depth": 2, "noise": "off", "verify": False}, "until": {"step": 30}},
]


def write(folder: Path, stages: Any = STAGES, **changes: Any) -> Path:
    (folder / "ds.json").write_text(json.dumps(CONFIG))
    tree = {"ds_config": "ds.json", "directory": str(folder / "runs"), "stages": stages} | changes
    (folder / "stages.json").write_text(json.dumps(tree))
    return folder / "stages.json"


def test_sizes_settings_and_ends_go_from_stage_to_stage(tmp_path: Path) -> None:
    first, second, third = read_stages(write(tmp_path)).stages
    models = [stage.config.model for stage in (first, second, third)]
    assert [(model.num_layers, model.hidden_size, model.num_attention_heads) for model in models] == [
        (2, 16, 2), (2, 32, 4), (4, 32, 4)
    ]  # fmt: skip
    assert [stage.config.training.seed for stage in (first, second, third)] == [7, 7, 7]
    assert [stage.config.optimizer.lr for stage in (first, second, third)] == [1e-3, 2e-3, 2e-3]
    assert [stage.config.training.grow_when for stage in (first, second, third)] == ["auto", None, None]
    assert (first.is_auto, second.tokens, third.step) == (True, 3000, 30)
    assert third.directory == tmp_path / "runs" / "stage_3"
    assert third.grow == ("--depth=2", "--noise=off", "--no-verify")


def test_the_growth_point_is_that_of_the_growth_which_follows(tmp_path: Path) -> None:
    assert "--training.grow_slope=-0.0475" in read_stages(write(tmp_path)).stages[0].overrides
    deeper = [STAGES[0], {"grow": {"layers": 4}}]
    assert "--training.grow_slope=-0.0575" in read_stages(write(tmp_path, deeper)).stages[0].overrides
    own = [STAGES[0] | {"set": {"training.grow_slope": -0.06}}, {"grow": {"layers": 4}}]
    assert "--training.grow_slope=-0.06" in read_stages(write(tmp_path, own)).stages[0].overrides


def test_a_stage_is_given_its_own_settings_alone(tmp_path: Path) -> None:
    """Those before it are in the grown configuration, where some have become others."""
    second = read_stages(write(tmp_path)).stages[1]
    assert "--optimizer.params.lr=0.002" in second.overrides
    assert not any("training.seed" in item for item in second.overrides)


GROW = {"grow": {"width": 2}}
WRONG: dict[str, tuple[Any, dict[str, Any], str]] = {
    "misspelt": (STAGES, {"stage": []}, "stage is not a setting. Did you mean stages"),
    "no stages": ([], {}, "stages must be a list"),
    "no list": ({}, {}, "stages must be a list"),
    "no object": ([3], {}, r"stages[0] must be a JSON object"),
    "no directory": (STAGES, {"directory": ""}, "directory must be a path"),
    "no configuration": (STAGES, {"ds_config": None}, "ds_config must be a path"),
    "missing configuration": (STAGES, {"ds_config": "none.json"}, "none.json: cannot be read"),
    "first grows": ([GROW], {}, "stages[0].grow must be left out"),
    "second does not": ([{}, {}], {}, "stages[1].grow must be given"),
    "last is auto": ([{}, GROW | {"until": "auto"}], {}, "stages[1].until cannot be auto"),
    "unknown key": ([{"untill": "auto"}], {}, "Did you mean until"),
    "until text": ([{"until": "soon"}], {}, 'stages[0].until must be "auto"'),
    "until two": ([{"until": {"step": 3, "tokens": 4}}], {}, "stages[0].until must be"),
    "until zero": ([{"until": {"step": 0}}], {}, "stages[0].until.step must be an integer greater than 0"),
    "until fraction": ([{"until": {"tokens": 1.5}}], {}, "stages[0].until.tokens must be an integer"),
    "unknown flag": ([{}, {"grow": {"widht": 2}}], {}, "Did you mean width"),
    "bad factor": ([{}, {"grow": {"width": "wide"}}], {}, "stages[1].grow: argument --width"),
    "flag list": ([{}, {"grow": {"width": [2]}}], {}, "stages[1].grow.width must be a number or a text"),
    "nothing to grow": ([{}, {"grow": {}}], {}, "there is nothing to grow"),
    "no whole size": ([{}, {"grow": {"width": 1.1}}], {}, "which is no whole number"),
    "setting": ([{"set": {"model.num_layer": 3}}], {}, "Did you mean num_layers"),
    "setting of a later stage": ([{}, GROW | {"set": {"optimizer.params.lrr": 1}}], {}, "is not a setting"),
    "ours": ([{"set": {"logging.directory": "x"}}], {}, "logging.directory is what the stages decide"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_input_is_one_sentence(tmp_path: Path, kind: str) -> None:
    stages, changes, message = WRONG[kind]
    with pytest.raises(ConfigError) as caught:
        read_stages(write(tmp_path, stages, **changes))
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()
