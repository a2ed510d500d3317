"""Write the whole training state, each rank its share, one tensor at a time.

The tensors of one parameter are assembled over the data-parallel ranks (a collective) and written by one of them, in
turn, so a rank never holds more than a file's worth. torch.distributed.checkpoint would write safetensors too, but it
wants every assembled tensor of the state at once on every rank, which undoes ZeRO.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from megatron_slw.checkpoint import format as layout
from megatron_slw.checkpoint.rank_files import RankFiles, all_records, own_blocks
from megatron_slw.checkpoint.save_error import SaveError, agree
from megatron_slw.checkpoint.state import TrainingState
from megatron_slw.parallel.groups import Groups
from megatron_slw.train.engine import Engine
from megatron_slw.train.engine_state import optimizer_steps, read_scaler


@dataclass(frozen=True)
class Save:
    """One save: where it goes and what it consists of beside the tensors."""

    groups: Groups
    final: Path
    state: TrainingState
    keep_last: int

    @property
    def writing(self) -> Path:
        """The folder until it is complete."""
        return self.final.with_name(self.final.name + layout.WRITING)

    def prepare(self) -> None:
        """Make an empty folder; collective."""
        self.together(lambda: layout.make_empty(self.writing) if self.groups.rank == 0 else None)

    def commit(self) -> None:
        """Once all ranks have written: make it a checkpoint, and delete the oldest. Rank 0 does, the others nothing.

        Raises:
            OSError: a file cannot be written, or an older checkpoint cannot be deleted.
        """
        if self.groups.rank == 0:
            layout.write_json(self.writing / layout.STATE, self.state.to_json())
            records = all_records(self.writing, self.groups.world_size)
            layout.commit(self.writing, self.final, records, self.keep_last)

    def together(self, work: Callable[[], None]) -> None:
        """Do a rank's part; SaveError on every rank, after all have done theirs, if it failed on any. Collective."""
        error = None
        try:
            work()
        except OSError as found:
            error = found
        self.settle(error)

    def settle(self, error: BaseException | None) -> None:
        """Agree on whether a part that is over went well; collective. What was written of a failed save is removed."""
        try:
            agree(self.groups, self.final, error)
        except SaveError:
            if self.groups.rank == 0:
                shutil.rmtree(self.writing, ignore_errors=True)  # the disk may be full of it
            raise


def new_save(engine: Engine, directory: Path, state: TrainingState, keep_last: int) -> Save:
    """The save of this moment: what the engine counts is put into the state."""
    state = replace(state, optimizer_steps=optimizer_steps(engine), loss_scaler=read_scaler(engine))
    return Save(engine.groups, layout.step_folder(directory, state.progress.step), state, keep_last)


def save_checkpoint(engine: Engine, directory: Path, state: TrainingState, keep_last: int) -> Path:
    """Save after `state.progress.step` steps. Collective.

    Args:
        engine: the weights and the optimizer.
        directory: the run's checkpoint directory, which every rank sees.
        state: of the run; what the engine counts is put in here.
        keep_last: complete checkpoints to keep.

    Returns:
        The checkpoint's folder.

    Raises:
        SaveError: on every rank, if any could not write its part.
    """
    save = new_save(engine, directory, state, keep_last)
    save.prepare()
    save.together(lambda: _write(engine, RankFiles(save.writing, save.groups.rank)))
    save.together(save.commit)
    return save.final


def _write(engine: Engine, files: RankFiles) -> None:
    """A rank's part. A full disk must not keep this rank out of the others' collectives: it reads on to the end."""
    error: OSError | None = None
    for block in own_blocks(engine):
        if error is None:
            try:
                files.add(block)
            except OSError as found:
                error = found
    if error is not None:
        raise error
    files.finish()
