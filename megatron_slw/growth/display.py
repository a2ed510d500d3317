"""What a person sees of a growth: one line on what it is, a bar, one line on whether it is the same model."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import prod

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn, TransferSpeedColumn

from megatron_slw.growth.grow import Growth
from megatron_slw.growth.sizes import describe
from megatron_slw.growth.verify import Comparison
from megatron_slw.train.estimate import parameters
from megatron_slw.train.units import count_text


def headline(growth: Growth) -> str:
    """From what to what, and how: two lines."""
    old, grown = growth.checkpoint, growth.grown
    before, after = old.config.model, grown.config.model
    operators = _operators(growth)
    text = (
        f"{describe(before)} ({count_text(parameters(before))})  ->  {describe(after)} "
        f"({count_text(parameters(after))})   operator {', '.join(operators)}, moments tiled\n"
    )
    if growth.options.dynamics == "exact":
        return text + "learning rate exact: every step is the small model's"
    position = min(grown.progress.tokens - grown.record.lr_shift_tokens, old.plan.tokens_trained)
    return text + (
        f"learning rate retarget: step {old.progress.step:,} -> {old.plan.steps_to_tokens(position):,} of its "
        f"schedule, warmup of {grown.record.rewarmup_steps} steps"
    )


def _operators(growth: Growth) -> list[str]:
    """Those that a stage used, each once."""
    sizes = growth.checkpoint.config.model
    found: list[str] = []
    for stage in growth.stages:
        if stage.model.num_layers != sizes.num_layers:
            found.append(stage.depth_operator)
        if sizes != stage.model.model_copy(update={"num_layers": sizes.num_layers}):
            found.append(stage.width_operator)
        sizes = stage.model
    return list(dict.fromkeys(found))


def warnings(growth: Growth) -> list[str]:
    """What a person should know before the training."""
    found = []
    model = growth.grown.config.model
    dropout = max(model.hidden_dropout, model.attention_dropout)
    sizes = growth.checkpoint.config.model
    for stage in growth.stages:
        wider = stage.model.hidden_size >= 2 * sizes.hidden_size or stage.model.ffn_size >= 2 * sizes.ffn_size
        if wider and stage.snr_db is None and not dropout:
            found.append(
                "without noise and dropout equal copies stay equal, and the model learns no more than the small one; "
                "--noise 10 tells them apart"
            )
        if stage.snr_db is not None and growth.options.dynamics == "exact":
            found.append("with noise the steps are the small model's nearly, no longer exactly: copies go apart")
        sizes = stage.model
    if not growth.is_lossless:
        found.append("stack and interpolate do not preserve the loss")
    if growth.grown.progress.step == 0 and growth.checkpoint.progress.step:
        found.append(
            "the clock begins again at step 0 with another order of the data: lengths or batches are not those of the "
            "steps already trained"
        )
    return found


def verdict(result: Comparison) -> str:
    """Both losses."""
    return (
        f"verify   loss before {result.before:.5f}   after {result.after:.5f}   difference "
        f"{abs(result.after - result.before):.1e}"
    )


@contextmanager
def progress_bar(shapes: Mapping[str, tuple[int, ...]], itemsize: int = 4) -> Iterator[Callable[[str, int], None]]:
    """Gives the function to be told of each tensor written, of those with these shapes."""
    total = sum(itemsize * prod(shape) for shape in shapes.values())
    console = Console(file=sys.stderr)
    columns = (
        BarColumn(), TextColumn("{task.fields[count]}/" + f"{len(shapes)} tensors"), TransferSpeedColumn(),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    lock = threading.Lock()
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=total, count=0)
        written = 0

        def done(_: str, size: int) -> None:
            nonlocal written
            with lock:
                written += 1
                progress.update(task, advance=size, count=written)

        yield done
