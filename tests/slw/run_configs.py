"""A RunConfig with the few settings that shape a plan and a learning rate; the rest is filled in."""

from __future__ import annotations

from typing import Any

from megatron_slw.config.schema import (
    CheckpointConfig,
    CurriculumConfig,
    DataConfig,
    EvaluationConfig,
    LoggingConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    RunConfig,
    TrainingConfig,
)


def linear(low: int, high: int, total: int, quantum: int = 8) -> CurriculumConfig:
    """A fixed_linear curriculum."""
    return CurriculumConfig(
        schedule_type="fixed_linear",
        min_difficulty=low,
        max_difficulty=high,
        total_curriculum_step=total,
        difficulty_step=quantum,
    )


def run_config(
    rows: int, full: int, curriculum: CurriculumConfig | None = None, lr: float = 1e-3, **training: Any
) -> RunConfig:
    """One process, global batch `rows`, full length `full`; `training` are fields of TrainingConfig."""
    return RunConfig(
        model=ModelConfig(num_layers=1, hidden_size=8, num_attention_heads=1, seq_length=full),
        parallel=ParallelConfig(),
        data=DataConfig(path="data"),
        training=TrainingConfig(**training),
        evaluation=EvaluationConfig(),
        checkpoint=CheckpointConfig(),
        logging=LoggingConfig(directory="run"),
        optimizer=OptimizerConfig(lr=lr),
        curriculum=curriculum,
        world_size=1,
        train_batch_size=rows,
        micro_batch_size=rows,
        gradient_accumulation_steps=1,
        precision="fp32",
        zero_stage=0,
        gradient_clipping=1.0,
        deepspeed={},
    )
