"""Sequence-length warmup in a training loop that is not ours, from the same JSON as ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_slw.config.schema import RunConfig
from megatron_slw.slw.compile import compile_plan, plan_of
from megatron_slw.slw.foreign_run import Source, foreign_run
from megatron_slw.slw.functional import set_batch_sequence_length
from megatron_slw.slw.resolve import resolve_schedules
from megatron_slw.slw.schedule import difficulty_at


class SequenceLengthWarmup:
    """The length of every optimizer step, and batches cut to it.

    Steps count from 0, so a step's number is how many were done before it. Every batch of one step (gradient
    accumulation, other ranks) must be cut for the same step. Either the loop counts and passes the step,

        batch = warmup(batch, step)

    or it leaves counting to the warmup, which then belongs in its checkpoints:

        batch = warmup(batch)
        ...
        optimizer.step()
        warmup.advance()

    Cut where the batch is used, not in a data loader's workers: these run ahead of the step. Evaluate uncut.

    Args:
        config: what `foreign_run` gives.
        rows: of a global batch; None where it is not known, and tokens cannot be counted.
        functional: keyword arguments of `set_batch_sequence_length`.
    """

    def __init__(self, config: RunConfig, rows: int | None, **functional: Any) -> None:
        self._plan = compile_plan(config)
        self._curriculum = resolve_schedules(config, plan_of).curriculum
        self._rows = rows
        self._functional = functional
        self.truncate = config.curriculum is None or config.curriculum.mode == "seqlen_truncate"
        """seqlen_truncate cuts rows off; seqlen_reshape (False) makes several rows of each."""
        self.step = 0
        """Optimizer steps done, where the warmup counts them."""

    @classmethod
    def from_config(
        cls,
        source: Source,
        total_steps: int | None = None,
        *,
        seq_length: int | None = None,
        rows: int | None = None,
        preserve_end_of_sequence: bool = False,
        pad_token_id: int = 0,
        label_pad_token_id: int = -100,
    ) -> SequenceLengthWarmup:
        """The warmup that a configuration describes; of the rest of it only model.seq_length, training and parallel
        are read.

        Args:
            source: a JSON file or what it holds: a whole configuration, or a curriculum block in DeepSpeed's new or
                legacy form, with or without its outer keys.
            total_steps: optimizer steps of the loop; None takes the end that the configuration's training section has.
            seq_length: of an uncut row; None takes model.seq_length, or else the curriculum's max_difficulty.
            rows: of a global batch, over all ranks and accumulated batches; None takes train_batch_size. Durations in
                tokens need it.
            preserve_end_of_sequence, pad_token_id, label_pad_token_id: see `set_batch_sequence_length`.

        Raises:
            ConfigError: something wrong in it, or something that another loop cannot follow: a loss_adaptive
                schedule, a warmup of the batch size, a mode that brings back what was cut off.
        """
        config, known_rows = foreign_run(source, total_steps, seq_length, rows)
        return cls(
            config,
            known_rows,
            preserve_end_of_sequence=preserve_end_of_sequence,
            pad_token_id=pad_token_id,
            label_pad_token_id=label_pad_token_id,
        )

    @property
    def full_length(self) -> int:
        """Positions of an uncut row."""
        return self._plan.full_length

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the run that the schedule was made for."""
        return self._plan.total_steps

    def seq_len(self, step: int) -> int:
        """Positions of a row in this step; also beyond the last of the run."""
        return difficulty_at(self._curriculum, self.full_length, step + 1)

    def tokens(self, step: int) -> int:
        """Labels trained in the first `step` steps, at `rows` rows each: padding and ignored labels count too.

        Raises:
            ValueError: the rows of a batch are not known, or the run has fewer steps.
        """
        if self._rows is None:
            raise ValueError("tokens cannot be counted: pass rows, the rows of a global batch")
        if not 0 <= step <= self.total_steps:
            raise ValueError(f"step {step} is not in the run: it has {self.total_steps} steps")
        if not self.truncate:
            return step * self._rows * self.full_length
        return self._plan.progress_at(step).tokens

    def __call__(self, batch: Any, step: int | None = None) -> Any:
        """`batch` at the length of `step`, by default the one that `advance` has counted to."""
        length = self.seq_len(self.step if step is None else step)
        return set_batch_sequence_length(batch, length, self.truncate, **self._functional)

    def advance(self) -> None:
        """An optimizer step is done."""
        self.step += 1

    def state_dict(self) -> dict[str, int]:
        """The steps counted by `advance`; everything else follows from the configuration."""
        return {"step": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`; ValueError if it is none."""
        step = state.get("step")
        if set(state) != {"step"} or type(step) is not int or step < 0:
            raise ValueError(f"a warmup's state is {{'step': a whole number}}, not {dict(state)!r:.80}")
        self.step = step

