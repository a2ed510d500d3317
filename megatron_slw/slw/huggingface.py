"""Sequence-length warmup for the Trainer of Hugging Face transformers (which is not imported here).

Where to cut: a data collator runs ahead of the step, by one batch in the main process and by many in workers; and by
the time the model sees a batch, the Trainer has counted its labels, by whose number it divides the loss. So batches are
cut in between, as the Trainer takes those of one step from the loader. That also leaves evaluation alone, gives all
accumulated batches of a step one length, and follows a resumed run, because the step is the Trainer's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from megatron_slw.slw.foreign_run import Source
from megatron_slw.slw.warmup import SequenceLengthWarmup


class SequenceLengthWarmupMixin:
    """Put before a Trainer's class (transformers 5) among the bases:

        class WarmupTrainer(SequenceLengthWarmupMixin, Trainer): ...

        WarmupTrainer(model, args, train_dataset=data, sequence_length_warmup="ds_slw.json").train()

    The run's steps and rows are the Trainer's; the logged training losses have the length beside them, `seq_len`.
    Not for collators that pack a whole batch into one row.

    Args:
        sequence_length_warmup: a JSON file or what it holds, or a SequenceLengthWarmup where more is to be said.
    """

    def __init__(self, *args: Any, sequence_length_warmup: Source | SequenceLengthWarmup, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._warmup_source = sequence_length_warmup
        self._warmup: SequenceLengthWarmup | None = None

    def get_batch_samples(self, epoch_iterator: Iterator[Any], *args: Any, **kwargs: Any) -> Any:
        """The batches of one optimizer step, cut before their labels are counted."""
        warmup, step = self._warmup_of_run(), self.state.global_step  # type: ignore[attr-defined]
        cut = (warmup(batch, step) for batch in epoch_iterator)
        return super().get_batch_samples(cut, *args, **kwargs)  # type: ignore[misc]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Training losses are logged with the length of their last step."""
        if "loss" in logs:
            last = max(0, self.state.global_step - 1)  # type: ignore[attr-defined]
            logs["seq_len"] = self._warmup_of_run().seq_len(last)
        super().log(logs, *args, **kwargs)  # type: ignore[misc]

    def _warmup_of_run(self) -> SequenceLengthWarmup:
        """Made at the first step, since only then the Trainer knows how many there are; again for another run."""
        if isinstance(self._warmup_source, SequenceLengthWarmup):
            return self._warmup_source
        steps: int = self.state.max_steps  # type: ignore[attr-defined]
        if self._warmup is None or self._warmup.total_steps != steps:
            rows = self.get_total_train_batch_size(self.args)  # type: ignore[attr-defined]
            self._warmup = SequenceLengthWarmup.from_config(self._warmup_source, steps, rows=rows)
        return self._warmup
