"""The saves of a run: at once or in the background, and what becomes of one that fails."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from megatron_slw.checkpoint import format as layout
from megatron_slw.checkpoint.background import BackgroundSave
from megatron_slw.checkpoint.save import new_save, save_checkpoint
from megatron_slw.checkpoint.save_error import SaveError
from megatron_slw.checkpoint.snapshot import Snapshot
from megatron_slw.checkpoint.state import TrainingState
from megatron_slw.train.engine import Engine, StepRefused


class Saver:
    """Saves when told to; all ranks call the same methods at the same points. A context manager.

    With `checkpoint.asynchronous` a save returns once the state is copied; at most one is in flight. Without it `poll`
    and `wait` do nothing.

    Args:
        engine: the weights and the optimizer.
        directory: the run's checkpoint directory.
        note: shows a line.
    """

    def __init__(self, engine: Engine, directory: Path, note: Callable[[str], None]) -> None:
        self._engine, self._directory, self._note = engine, directory, note
        self._config = engine.config.checkpoint
        self._snapshot = Snapshot(engine) if self._config.asynchronous else None
        self._flight: BackgroundSave | None = None

    def save(self, state: TrainingState, last: bool = False) -> None:
        """Save `state` and the tensors of this moment; collective.

        Args:
            state: of the run.
            last: nothing is trained afterwards, so it is complete on return, and an error is never passed over.

        Raises:
            SaveError: it, or the one in flight, could not be written, and the run does not go on without.
        """
        self.wait()
        try:
            if self._snapshot is None or last:
                path = save_checkpoint(self._engine, self._directory, state, self._config.keep_last)
                self._note(f"saved {path}")
            else:
                save = new_save(self._engine, self._directory, state, self._config.keep_last)
                save.prepare()
                self._flight = BackgroundSave(save, self._snapshot.take(self._engine))
        except SaveError as error:
            self._failed(error, last)

    def poll(self) -> None:
        """Between two steps: see whether the save in flight is done; collective.

        Raises:
            SaveError: it could not be written, and `checkpoint.on_error` is stop.
        """
        self._advance(wait=False)

    def wait(self) -> None:
        """Until no save is in flight; collective. Raises as `poll`."""
        self._advance(wait=True)

    def _advance(self, wait: bool) -> None:
        flight, self._flight = self._flight, None
        if flight is None:
            return
        try:
            path = flight.advance(wait)
        except SaveError as error:
            self._failed(error, last=False)
            return
        if path is None:
            self._flight = flight
        else:
            self._note(f"saved {path}")

    def _failed(self, error: SaveError, last: bool) -> None:
        if last or self._config.on_error == "stop":
            raise error
        newest = layout.latest_checkpoint(self._directory)
        before = "nothing was saved yet" if newest is None else f"{newest.name} is the newest complete one"
        self._note(f"warning: {error} Training goes on; {before}.")

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.wait()
        elif isinstance(error, StepRefused):  # on all ranks alike, and of a later step than the save's
            with contextlib.suppress(SaveError):
                self.wait()
        elif self._flight is not None:
            self._flight.abandon()
