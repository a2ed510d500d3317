"""Properties of every configuration: it survives JSON, its batch adds up, no input ends in a traceback."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_slw.config import ConfigError, RunConfig, to_json
from megatron_slw.config.json_file import parse_json
from megatron_slw.config.load import resolve
from megatron_slw.config.overrides import apply_overrides

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def valid_trees(draw: st.DrawFn) -> tuple[dict[str, Any], int]:
    """The JSON of a valid configuration and its world size."""
    tensor, pipeline, replicas = (draw(st.sampled_from([1, 2, 4])) for _ in range(3))
    micro, accumulation = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    full = 8 * draw(st.integers(1, 64)) * tensor
    precision = draw(st.sampled_from(["fp32", "bf16", "fp16"]))
    stage = draw(st.integers(precision != "fp32", 1 if pipeline > 1 else 3))
    tree: dict[str, Any] = {
        "train_batch_size": micro * accumulation * replicas,
        "train_micro_batch_size_per_gpu": micro,
        "zero_optimization": {"stage": stage},
        "optimizer": {"type": draw(st.sampled_from(["Adam", "AdamW", "SGD"])), "params": {"lr": 1e-3}},
        "megatron_slw": {
            "model": {
                "num_layers": draw(st.integers(pipeline, 40)),
                "hidden_size": 64 * draw(st.integers(1, 20)),
                "num_attention_heads": 8,
                "seq_length": full,
                "hidden_dropout": draw(st.floats(0.0, 0.9)),
            },
            "parallel": {"tensor": tensor, "pipeline": pipeline, "sequence_parallel": draw(st.booleans())},
            "data": {"path": draw(st.text(min_size=1))},
            "training": {
                draw(st.sampled_from(["train_tokens", "train_steps"])): draw(st.integers(1, 10**12))
            },
            "logging": {"directory": "runs/x"},
        },
    }
    if precision != "fp32":
        tree[precision] = {"enabled": True}
    if draw(st.booleans()):
        low, step = draw(st.integers(1, full)), 8 * tensor
        tree["curriculum_learning"] = {
            "enabled": True,
            "curriculum_type": "seqlen",
            "min_difficulty": low,
            "max_difficulty": full,
            "schedule_type": "fixed_linear",
            "schedule_config": {
                "total_curriculum_step": draw(st.integers(1, 10**9)),
                "difficulty_step": step,
            },
        }
    return tree, tensor * pipeline * replicas


@quick
@given(valid_trees())
def test_a_valid_configuration_survives_json(case: tuple[dict[str, Any], int]) -> None:
    tree, world_size = case
    before = copy.deepcopy(tree)
    config = resolve(tree, world_size)
    assert tree == before
    assert RunConfig.model_validate(json.loads(json.dumps(to_json(config)))) == config
    product = config.micro_batch_size * config.gradient_accumulation_steps * config.data_parallel_size
    assert config.train_batch_size == product
    assert (config.curriculum is None) == ("curriculum_learning" not in tree)


def settings_paths(tree: dict[str, Any], path: str = "") -> list[str]:
    """The dotted path of everything in `tree`."""
    paths = []
    for name, value in tree.items():
        here = f"{path}.{name}" if path else name
        paths.append(here)
        if isinstance(value, dict):
            paths += settings_paths(value, here)
    return paths


@quick
@given(data=st.data())
def test_any_json_anywhere_is_accepted_or_refused_in_one_line(
    good: dict[str, Any], data: st.DataObject
) -> None:
    path = data.draw(st.sampled_from(settings_paths(good)))
    value = data.draw(json_values)
    try:
        tree, _ = apply_overrides(good, [f"{path}={json.dumps(value)}"])
        resolve(tree, 8)
    except ConfigError as error:
        assert str(error).isprintable() and len(str(error)) < 600, ascii(str(error))


@quick
@given(st.text())
def test_any_text_is_json_or_refused_in_one_line(text: str) -> None:
    try:
        parse_json(text)
    except ConfigError as error:
        assert str(error).isprintable()
