"""The largest step runs before the first: the right shape, no trace of it, and one sentence where it does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_slw.config.schema import CurriculumConfig, OpsConfig
from megatron_slw.data.blend import open_samples
from megatron_slw.data.loader import TrainLoader
from megatron_slw.slw.batching import micro_batching
from megatron_slw.slw.compile import compile_plan
from megatron_slw.slw.plan import Plan, Run
from megatron_slw.testing import WorkerPool, single_process, tiny_config, write_tiny_dataset
from megatron_slw.train import job
from megatron_slw.train.engine import Engine
from megatron_slw.train.rehearsal import OutOfMemory, explained_out_of_memory, largest_steps
from tests.train import rehearsal_jobs

TP2, PP2 = {"tensor": 2}, {"pipeline": 2}
LAYOUTS: dict[str, dict[str, Any]] = {
    "one": {},
    "dp2": {"world_size": 2},
    "tp2-pp2": {"world_size": 4, "parallel": TP2 | PP2},
    "zero1": {"world_size": 2, "zero_stage": 1},
    "zero2-bf16": {"world_size": 2, "zero_stage": 2, "precision": "bf16"},
    "zero3": {"world_size": 2, "zero_stage": 3},
    "zero3-bf16": {"world_size": 2, "zero_stage": 3, "precision": "bf16"},
    "pp2-dp2-zero1-bf16": {"world_size": 4, "parallel": PP2, "zero_stage": 1, "precision": "bf16"},
    "tp2-zero1-bf16-recomputed": {
        "world_size": 2, "parallel": TP2, "zero_stage": 1, "precision": "bf16",
        "training__activation_checkpointing": True,
    },
    "zero1-fp16": {"world_size": 2, "zero_stage": 1, "precision": "fp16"},
    "zero3-fp16": {"world_size": 2, "zero_stage": 3, "precision": "fp16"},
    "sgd-momentum": {"optimizer": {"type": "SGD", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}},
    "sgd": {"optimizer": {"type": "SGD", "lr": 0.1, "weight_decay": 0.1}},
    "adam-l2-zero1": {
        "world_size": 2, "zero_stage": 1, "optimizer": {"type": "Adam", "lr": 1e-2, "weight_decay": 0.1},
    },
}  # fmt: skip
TORCH = {"backend": "torch"}
FP16 = {"fp16": {"enabled": True, "initial_scale_power": 16, "loss_scale_window": 2, "hysteresis": 2}}
DROPOUT = {"model__hidden_dropout": 0.1, "model__attention_dropout": 0.1}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tiny_dataset(tmp_path / "data")
    return tmp_path


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_run_with_rehearsal_is_bit_equal_to_one_without(pool: WorkerPool, folder: Path, layout: str) -> None:
    """Resumes are in test_resume.py: there the second run rehearses and must go on as the first, bit for bit."""
    config = tiny_config(folder, **LAYOUTS[layout], **DROPOUT)
    train = rehearsal_jobs.train
    if config.precision == "fp16":
        config = config.model_copy(update={"deepspeed": config.deepspeed | FP16})
        train = rehearsal_jobs.train_fp16
    results = [pool.run(train, config.world_size, (config, 4, rehearsed)) for rehearsed in (True, False)]
    for (calls, before, after), (plain_calls, plain_before, plain_after) in zip(*results, strict=True):
        assert (9, 32, 0.0, 0.0, 0.0) in calls[:-4], "the longest step did not come first"
        assert all(call[2:] == (0.0, 0.0, 0.0) for call in calls[:-4]), "a rehearsed step had a weight or a rate"
        assert calls[-4:] == plain_calls and len(plain_calls) == 4, "losses differ"
        for ours, plain in ((before, plain_before), (after, plain_after)):
            assert ours.keys() == plain.keys(), "not the same state"
            differing = [key for key in plain if not np.array_equal(ours[key], plain[key])]
            assert not differing, f"{differing[:5]} differ"
        assert any(not np.array_equal(before[key], after[key]) for key in before), "nothing was trained"


@pytest.mark.parametrize("backend", ["torch", "auto"])
@pytest.mark.parametrize("layout", ["one", "zero3", "pp2-dp2-zero1-bf16", "tp2-zero1-bf16-recomputed"])
def test_no_step_needs_more_memory_than_the_rehearsal(
    pool: WorkerPool, folder: Path, layout: str, backend: str
) -> None:
    small_bucket = {"reduce_bucket_size": 10_000}  # beside DeepSpeed's usual one all activations are nothing
    quick = {"curriculum__max_step": [1, 2, 3, 4], "training__train_steps": 6}
    config = tiny_config(folder, **LAYOUTS[layout], **quick, train_batch_size=16, micro_batch_size=4)
    config = config.model_copy(update={"ops": OpsConfig(backend=backend)})
    zero = config.deepspeed.get("zero_optimization", {}) | small_bucket
    config = config.model_copy(update={"deepspeed": config.deepspeed | {"zero_optimization": zero}})
    for first, rehearsed, most in pool.run(rehearsal_jobs.peaks, config.world_size, (config,)):
        # Once in two runs one rank had 8,192 bytes more in a step, the size of an activation. Why is not known; the
        # suspect is a reduction whose thread still holds its tensor.
        assert most <= 1.002 * rehearsed + 8192, f"{most} bytes in a step, {rehearsed} in the rehearsal"
        assert first < 0.99 * rehearsed, "the first step was as large: the case tests nothing"


def test_a_resume_rehearses_what_is_left(pool: WorkerPool, folder: Path) -> None:
    config = tiny_config(folder, checkpoint__interval=0)
    with single_process():
        job.train(job.build_job(tiny_config(folder, training__train_steps=10), job.build_groups(config.parallel)))
    calls, _, _ = pool.run(rehearsal_jobs.train, 1, (config, 12, True))[0]
    assert [call[0] for call in calls] == [10, 11], "a step of length 32 was rehearsed before one of length 32"


def test_the_largest_micro_batch_and_the_greatest_length() -> None:
    """While sequences are short micro-batches are merged, so the longest is not always the largest."""
    config = tiny_config("unused", ops=TORCH)
    at = {step.step: step.seq_len for step in largest_steps(config, compile_plan(config), 0)}
    assert at == {9: 32}
    # 2 rows of 32 tokens fit the budget of 100, and 8 of 12, which are more
    merged = tiny_config("unused", training__micro_batch_tokens=100, ops=TORCH)
    plan = Plan((Run(0, 8, 8), Run(3, 12, 8), Run(5, 32, 8)), 9, 32)
    assert micro_batching(merged, 12).rows * 12 > micro_batching(merged, 32).rows * 32
    assert [(step.step, step.seq_len) for step in largest_steps(merged, plan, 0)] == [(3, 12), (5, 32)]
    assert [(step.step, step.seq_len) for step in largest_steps(merged, plan, 3)] == [(5, 32)]
    assert [(step.step, step.seq_len) for step in largest_steps(merged, plan, 4)] == [(5, 32)]
    assert largest_steps(merged, plan, 6) == [], "the first step is the largest"
    assert largest_steps(merged, plan, 9) == [], "nothing is left to train"


def test_where_other_operators_run_at_other_sizes_the_step_that_keeps_most_is_rehearsed_too() -> None:
    """The fused softmax keeps its scores; with the vocabulary cut, logits up to 1 GiB are held whole, more are not."""
    fused = tiny_config("unused", model__seq_length=160, ops={"backend": "csrc"})
    long = Plan((Run(0, 8, 8), Run(3, 128, 8), Run(5, 160, 8)), 9, 160)
    at = [(step.step, step.seq_len) for step in largest_steps(fused, long, 0)]
    assert sorted(at) == [(3, 128), (5, 160)], at
    plan = Plan((Run(0, 8, 8), Run(3, 16, 8), Run(5, 32, 8)), 9, 32)
    huge = tiny_config(
        "unused", world_size=2, parallel=TP2, train_batch_size=8, micro_batch_size=8, ops=TORCH,
        training__micro_batch_tokens=1, model__vocab_size=3_000_000,
    )  # fmt: skip
    assert [(step.step, step.seq_len) for step in largest_steps(huge, plan, 0)] == [(5, 32), (3, 16)]


ADAPTIVE = {
    "schedule_type": "loss_adaptive", "min_difficulty": 8, "max_difficulty": 32, "difficulty_step": 8, "patience": 2,
}  # fmt: skip
BATCH_WARMUP = {
    "mode": "batch_size", "schedule_type": "fixed_discrete", "min_difficulty": 2, "max_difficulty": 8,
    "difficulty": [2, 4, 8], "max_step": [2, 5],
}  # fmt: skip


def test_a_loss_adaptive_schedule_rehearses_a_length_that_is_not_in_its_plan_yet(folder: Path) -> None:
    config = tiny_config(folder, curriculum=None, ops=TORCH)
    config = config.model_copy(update={"curriculum": CurriculumConfig(**ADAPTIVE)})
    plan = compile_plan(config)
    assert {run.seq_len for run in plan.runs} == {8}, "the plan knows its future"
    (step,) = largest_steps(config, plan, 0)
    assert (step.seq_len, step.rows) == (32, 8)
    windows = open_samples(config.data, 32, "train")
    assert TrainLoader(windows, seed=1).read(step, 0, 1).tokens_BT.shape == (8, 32)


def test_a_batch_warmup_rehearses_a_step_that_sums_gradients() -> None:
    """One micro-batch of two rows keeps no gradients while the next is computed; four do."""
    config = tiny_config("unused", curriculum=None).model_copy(
        update={"batch_warmup": CurriculumConfig(**BATCH_WARMUP)}
    )
    assert [(step.step, step.rows) for step in largest_steps(config, compile_plan(config), 0)] == [(5, 8)]


@pytest.mark.parametrize("mode", ["seqlen_reshape", "seqlen_replay", "seqlen_tailpack"])
def test_every_mode_is_rehearsed_without_a_trace(pool: WorkerPool, folder: Path, mode: str) -> None:
    config = tiny_config(folder, curriculum__mode=mode)
    results = [pool.run(rehearsal_jobs.train, 1, (config, 3, rehearsed))[0] for rehearsed in (True, False)]
    assert (9, 32, 0.0, 0.0, 0.0) in results[0][0][:-3]
    assert results[0][0][-3:] == results[1][0], "losses differ"


def test_no_other_step_has_a_larger_shape() -> None:
    """Exhaustively: no micro-batch to come has more tokens, is longer or fills the pipeline more."""
    for pipeline in (1, 4):
        for budget in (None, 1, 64, 100, 400):
            config = tiny_config(
                "unused", world_size=pipeline, parallel={"pipeline": pipeline}, training__micro_batch_tokens=budget,
                train_batch_size=24,
            )  # fmt: skip
            plan = compile_plan(config)
            for first in range(plan.total_steps):
                shapes = [plan.at(first), *largest_steps(config, plan, first)]
                sizes = [_size(config, step.seq_len) for step in shapes]
                for number in range(first, plan.total_steps):
                    size = _size(config, plan.at(number).seq_len)
                    assert all(any(size[i] <= other[i] for other in sizes) for i in range(3)), (first, number)


def _size(config: Any, seq_len: int) -> tuple[int, int, int]:
    batching = micro_batching(config, seq_len)
    tokens = batching.rows * seq_len
    return tokens, seq_len, tokens * min(config.parallel.pipeline, batching.parts)


CUDA_TEXT = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 139.81 GiB of which 1.15 GiB is "
    "free. Including non-PyTorch memory, this process has 138.65 GiB memory in use. Of the allocated memory ..."
)
ERRORS: dict[str, tuple[Exception, str]] = {
    "cuda": (torch.OutOfMemoryError(CUDA_TEXT), "Tried to allocate 2.00 GiB. To make"),
    "cpu": (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes."), "9 bytes. To make"),
    "python": (MemoryError(), "MemoryError. To make"),
    "cublas": (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "CUBLAS"),
}


def write_config(folder: Path) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({
        "train_batch_size": 8, "train_micro_batch_size_per_gpu": 2,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3}},
        "data_efficiency": {"data_sampling": {"curriculum_learning": {"enabled": True, "curriculum_metrics": {
            "seqlen_truncate": {
                "min_difficulty": 8, "max_difficulty": 32, "schedule_type": "fixed_linear",
                "schedule_config": {"total_curriculum_step": 20, "difficulty_step": 8},
            }}}}},
        "megatron_slw": {
            "model": {"num_layers": 1, "hidden_size": 32, "num_attention_heads": 4, "seq_length": 32,
                      "vocab_size": 300},
            "data": {"path": str(folder / "data")}, "training": {"train_steps": 30},
            "evaluation": {"interval": 0}, "logging": {"directory": str(folder / "run")},
        },
    }))  # fmt: skip
    return path


@pytest.mark.parametrize("kind", ERRORS)
def test_memory_that_does_not_suffice_is_one_sentence_before_anything_is_trained(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    error, text = ERRORS[kind]
    trained, train_step = [], Engine.train_step

    def limited(engine: Engine, blocks: Any, step: Any, learning_rate: float) -> Any:
        trained.append(step.step)
        if step.seq_len == 32:
            raise error
        return train_step(engine, blocks, step, learning_rate)

    monkeypatch.setattr(Engine, "train_step", limited)
    with single_process():
        assert job.main(str(write_config(folder)), []) == 1
    out, err = capsys.readouterr()
    assert out == "" and len(err.strip().splitlines()) == 1, (out, err)
    assert err.startswith("rank 0 ran out of memory at step 20, the largest, which was rehearsed before the first"), err
    assert text in err and "(micro-batches of 2 rows x 32 tokens)" in err, err
    assert "lower train_micro_batch_size_per_gpu (now 2), set training.activation_checkpointing to true, or " in err
    assert "lower model.seq_length (now 32)" in err, err
    assert trained == [19], "something was trained"
    assert not (folder / "run").exists(), "something was written"


def test_a_later_step_that_does_not_fit_is_explained_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train_step = Engine.train_step

    def limited(engine: Engine, blocks: Any, step: Any, learning_rate: float, *rest: Any) -> Any:
        if step.step == 3:
            raise torch.OutOfMemoryError(CUDA_TEXT)
        return train_step(engine, blocks, step, learning_rate, *rest)

    monkeypatch.setattr(Engine, "train_step", limited)
    with single_process():
        assert job.main(str(write_config(folder)), []) == 1
    assert "rank 0 ran out of memory in step 4 (micro-batches of 8 rows x 8 tokens)" in capsys.readouterr().err


def test_the_sentence_names_the_settings_that_help() -> None:
    merged = tiny_config("unused", training__micro_batch_tokens=64, training__activation_checkpointing=True)
    for step, told, untold in (
        (compile_plan(merged).at(0), ["training.micro_batch_tokens"], ["activation_checkpointing"]),
        (compile_plan(merged).at(11), ["model.seq_length"], ["training.micro_batch_tokens"]),
    ):
        with pytest.raises(OutOfMemory) as found, explained_out_of_memory(merged, step, 3, "in step 1"):
            raise MemoryError
        assert all(text in str(found.value) for text in ["rank 3", *told]), found.value
        assert not any(text in str(found.value) for text in untold), found.value


def test_other_errors_pass() -> None:
    config = tiny_config("unused")
    with pytest.raises(RuntimeError, match="size mismatch") as found:
        with explained_out_of_memory(config, compile_plan(config).at(0), 0, "in step 1"):
            raise RuntimeError("size mismatch")
    assert type(found.value) is RuntimeError
