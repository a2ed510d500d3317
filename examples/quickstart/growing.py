"""The small model made larger with its whole training state, by what tools/grow_checkpoint.py calls."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stamps import Facts, set_aside
from training import stop_leftovers

from megatron_slw.checkpoint.format import latest_checkpoint, step_folder
from megatron_slw.config.errors import ConfigError
from megatron_slw.growth.sizes import describe
from megatron_slw.train.estimate import parameters, plan_flops

if TYPE_CHECKING:
    from megatron_slw.growth.grow import Growth
    from megatron_slw.growth.verify import Comparison

WORKERS = 2


class GrowingFailed(RuntimeError):
    """The grown model is not the same one, or could not be written; nothing is left behind."""


@dataclass(frozen=True)
class Growing:
    """One growth of a checkpoint."""

    load: Path
    step: int
    """Of that checkpoint."""
    run: Path
    """The larger model's run directory."""
    flags: tuple[str, ...]
    """For tools/grow_checkpoint.py, but --load and --save."""

    @property
    def save(self) -> Path:
        """The grown checkpoint."""
        return step_folder(self.run / "checkpoints", self.step)

    @property
    def config(self) -> Path:
        """The grown run's configuration."""
        return self.run / "ds_config.json"

    @property
    def shown_command(self) -> str:
        """What a user would type."""
        paths = ["--load", str(self.load), "--save", str(self.save)]
        return shlex.join(["python", "tools/grow_checkpoint.py", *paths, *self.flags])

    @property
    def is_there(self) -> bool:
        """Whether the larger run has a checkpoint, its first or a later one."""
        return latest_checkpoint(self.run / "checkpoints") is not None

    def __call__(self, say: Callable[[str], None]) -> Facts:
        """Grow, verify, and say both losses.

        Raises:
            ConfigError: the growth cannot be had.
            GrowingFailed: the grown model is not the same one, or could not be written.
        """
        from megatron_slw.growth import display, flags, grow  # torch: seconds that the other steps save
        from megatron_slw.train.staged_file import parse_growth

        self.clear(say)
        say(self.shown_command)
        paths = [f"--load={self.load}", f"--save={self.save}"]
        growth = flags.plan(parse_growth([*paths, *self.flags], "--grow"))
        if growth.grown.progress.step != self.step:
            raise ConfigError(
                f"--grow {shlex.join(self.flags)} would begin the clock again. Leave lengths and batches."
            )
        for warning in display.warnings(growth):
            say(f"warning: {warning}")
        try:
            with display.progress_bar(growth.tensors.shapes) as done:
                result = grow.run(growth, WORKERS, done)
        except grow.GrowthError as error:
            raise GrowingFailed(str(error)) from None
        if growth.tokens is not None:
            rows, length = growth.tokens.shape
            say(f"both models run in fp64 on the first {rows * (length - 1)} training tokens:")
        return grown_facts(growth, result)

    def clear(self, say: Callable[[str], None]) -> None:
        """A larger run that is there already was not grown from this checkpoint, or was not yet trained."""
        stop_leftovers(self.run)
        newest = latest_checkpoint(self.run / "checkpoints")
        if newest == self.save:
            shutil.rmtree(self.run)
        elif newest is not None:
            say(f"{self.run} was grown from something else; it is now {set_aside(self.run)}")


def grown_facts(growth: Growth, result: Comparison | None) -> Facts:
    """What came of a growth."""
    before, after = growth.checkpoint.config.model, growth.grown.config.model
    step = growth.grown.progress.step
    return {
        "grown_at_step": step,
        "small": describe(before),
        "small_parameters": parameters(before),
        "large": describe(after),
        "parameters": parameters(after),
        "total_steps": growth.grown.plan.total_steps,
        "flops_before": plan_flops(after, growth.grown.plan, step),
        "loss_before": result.before if result is not None else None,
        "loss_after": result.after if result is not None else None,
    }
