"""Parameters, FLOPs and memory against counts known from elsewhere, and against each other."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_slw.config.load import resolve
from megatron_slw.config.schema import ModelConfig, RunConfig
from megatron_slw.slw.compile import compile_plan
from megatron_slw.testing import tiny_config
from megatron_slw.train import activations as act
from megatron_slw.train import estimate

GPT2 = {
    "gpt2": (12, 768, 12, 124_439_808),
    "gpt2-medium": (24, 1024, 16, 354_823_168),
    "gpt2-large": (36, 1280, 20, 774_030_080),
    "gpt2-xl": (48, 1600, 25, 1_557_611_200),
}


def run_config(world_size: int = 1, model: dict[str, Any] | None = None, **changes: Any) -> RunConfig:
    shape: dict[str, Any] = {
        "num_layers": 8,
        "hidden_size": 256,
        "num_attention_heads": 8,
        "seq_length": 512,
        "vocab_size": 1000,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
    }
    tree: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 4,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3}},
        "megatron_slw": {
            "model": shape | (model or {}),
            "parallel": changes.pop("parallel", {}),
            "data": {"path": "data/text_document"},
            "training": {"train_steps": 10} | changes.pop("training", {}),
            "logging": {"directory": "runs/x"},
        },
    }
    return resolve(tree | changes, world_size)


@pytest.mark.parametrize(("layers", "hidden", "heads", "published"), GPT2.values(), ids=GPT2.keys())
def test_published_parameter_counts(layers: int, hidden: int, heads: int, published: int) -> None:
    model = ModelConfig(
        num_layers=layers, hidden_size=hidden, num_attention_heads=heads, seq_length=1024, vocab_size=50257
    )
    padding = (50304 - 50257) * hidden
    assert estimate.parameters(model) == published + padding


@pytest.mark.parametrize("tensor", [1, 2, 4])
@pytest.mark.parametrize("pipeline", [1, 2, 3])
def test_ranks_hold_the_model_once_and_the_replicated_parts_again(tensor: int, pipeline: int) -> None:
    config = run_config(tensor * pipeline, parallel={"tensor": tensor, "pipeline": pipeline})
    model = config.model
    replicated = model.num_layers * 6 * model.hidden_size + 2 * model.hidden_size
    replicated += model.seq_length * model.hidden_size
    table = model.padded_vocab_size * model.hidden_size
    held = tensor * sum(estimate.stage_parameters(config))
    assert held == estimate.parameters(model) + (tensor - 1) * replicated + (table if pipeline > 1 else 0)


def test_layers_per_stage() -> None:
    assert estimate.layers_per_stage(24, 8) == (3,) * 8
    assert estimate.layers_per_stage(10, 4) == (3, 3, 2, 2)
    assert estimate.layers_per_stage(7, 3) == (3, 2, 2)


def test_flops_follow_megatron() -> None:
    # arXiv 2104.04473, equation 3 without recomputation: 72 B s l h^2 (1 + s / 6h + V / 12lh) forward and
    # backward
    model = run_config(model={"vocab_size": 1024}).model
    s, layers, h, vocab = model.seq_length, model.num_layers, model.hidden_size, model.padded_vocab_size
    expected = 72 * layers * h * h * (1 + s / (6 * h) + vocab / (12 * layers * h))
    assert estimate.flops_per_token(model, s) == pytest.approx(expected, rel=1e-12)


def test_flops_of_a_plan_use_each_step_s_length() -> None:
    curriculum = {
        "enabled": True,
        "curriculum_type": "seqlen",
        "min_difficulty": 64,
        "max_difficulty": 512,
        "schedule_type": "fixed_linear",
        "schedule_config": {"total_curriculum_step": 6, "difficulty_step": 64},
    }
    config = run_config(curriculum_learning=curriculum)
    plan = compile_plan(config)
    steps = [plan.at(step) for step in range(plan.total_steps)]
    expected = sum(step.tokens * estimate.flops_per_token(config.model, step.seq_len) for step in steps)
    assert len({step.seq_len for step in steps}) > 3
    assert estimate.plan_flops(config.model, plan) == expected


def test_flops_so_far_are_those_of_the_steps_done() -> None:
    config = tiny_config("unused")
    plan, done = compile_plan(config), 0
    for step in range(plan.total_steps):
        assert estimate.plan_flops(config.model, plan, step) == done
        batch = plan.at(step)
        done += batch.tokens * estimate.flops_per_token(config.model, batch.seq_len)
    assert estimate.plan_flops(config.model, plan, plan.total_steps) == done == estimate.plan_flops(config.model, plan)


def test_a_layer_keeps_what_the_paper_says() -> None:
    # arXiv 2205.05198, equation 1: 34 s b h bytes in 16 bits with dropout; here plus what LayerNorm and
    # attention keep per token in fp32, and without its scores.
    config = run_config(
        model={"hidden_dropout": 0.1, "attention_dropout": 0.1},
        bf16={"enabled": True},
        zero_optimization={"stage": 1},
    )
    tokens = 2 * 512
    per_token = 4 * 4 + 4 * config.model.num_attention_heads
    total = sum(act.layer_table(config, 2, 512, "cuda").values())
    assert total == 34 * tokens * config.model.hidden_size + per_token * tokens


def test_tensor_and_sequence_parallel_follow_the_paper() -> None:
    # arXiv 2205.05198, equations 2 and 4, in 16 bits: s b h (10 + 24 / t), and 34 / t; our column-parallel
    # layers keep their gathered input whole (two of s b h, 2 bytes), where Megatron gathers it again in the
    # backward.
    bf16: dict[str, Any] = {
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": 1},
        "model": {"hidden_dropout": 0.1},
    }
    unit = 2 * 512 * 256
    small = 2 * 512 * (4 * 4 + 4 * 8)
    tensor = run_config(4, parallel={"tensor": 4}, **bf16)
    assert sum(act.layer_table(tensor, 2, 512, "cuda").values()) == pytest.approx(
        unit * (10 + 24 / 4), abs=small
    )
    both = run_config(4, parallel={"tensor": 4, "sequence_parallel": True}, **bf16)
    # its own masks are in 16 bits: one more byte for each of the two
    expected = unit * (34 + 2) / 4 + 2 * 2 * unit * (1 - 1 / 4)
    assert sum(act.layer_table(both, 2, 512, "cuda").values()) == pytest.approx(expected, abs=small)


def test_zero_shares_state_over_data_parallel_ranks() -> None:
    half: dict[str, Any] = {"bf16": {"enabled": True}}
    stages = [
        estimate.memory(run_config(4, zero_optimization={"stage": stage}, **half), 512) for stage in (1, 2, 3)
    ]
    count = estimate.parameters(run_config().model)
    assert [memory.weights for memory in stages] == [2 * count, 2 * count, 2 * (count + count // 4)]
    assert [memory.optimizer for memory in stages] == [12 * count // 4] * 3
    assert [memory.gradients for memory in stages] == [
        6 * count,
        count,
        count,
    ]  # 16-bit and fp32; shares of fp32
    plain = estimate.memory(run_config(4), 512)
    assert (plain.weights, plain.gradients, plain.optimizer) == (4 * count, 4 * count, 8 * count)


def test_pipeline_stages_hold_micro_batches_in_flight() -> None:
    config = run_config(
        4, model={"vocab_size": 128}, parallel={"pipeline": 4}, train_micro_batch_size_per_gpu=8
    )
    one = sum(act.layer_table(config, 8, 512, "cuda").values()) * 2  # two layers a stage
    kept = [estimate.stage_memory(config, stage, 512).activations for stage in range(4)]
    for stage in (0, 1, 2):
        assert kept[stage] == pytest.approx((4 - stage) * one, rel=0.25)
    assert kept[0] > kept[1] > kept[2]
    assert estimate.memory(config, 512).stage == 0


def test_memory_falls_with_length_and_with_recomputation() -> None:
    config = run_config()
    lengths = [estimate.memory(config, length).total for length in (8, 64, 512)]
    assert lengths == sorted(lengths) and lengths[0] < lengths[-1]
    saving = run_config(training={"activation_checkpointing": True})
    assert estimate.memory(saving, 512).activations < 0.5 * estimate.memory(config, 512).activations


def test_cpu_attention_with_dropout_keeps_scores() -> None:
    config = run_config(model={"attention_dropout": 0.1})
    cpu, cuda = (act.layer_table(config, 2, 512, device) for device in ("cpu", "cuda"))
    assert cpu["attention.scores"] == 3 * 2 * 512 * 512 * 8 * 4 and "attention.scores" not in cuda
