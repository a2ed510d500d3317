"""The tasks that a model is judged by while it trains: when each runs, and running it on the training engine.

Nothing of the training changes: weights are only read, dropout is off and no random number drawn, and DeepSpeed's
buffers keep the shape of the last step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from megatron_slw.config.errors import ConfigError
from megatron_slw.config.schema import RunConfig
from megatron_slw.data.dataset_tokenizer import dataset_tokenizer
from megatron_slw.evaluation.display import ScoringReport
from megatron_slw.evaluation.scoring import ScoredModel, score_rows
from megatron_slw.evaluation.tasks import Figures, Task, open_task
from megatron_slw.train.engine import Engine


@dataclass(frozen=True)
class ScheduledTask:
    """A task and its rhythm."""

    task: Task
    interval: int
    """Steps; 0 at the end only."""

    def due(self, step: int, last: bool) -> bool:
        """Whether it runs after `step` steps."""
        return last or (self.interval > 0 and step % self.interval == 0)


def open_tasks(config: RunConfig) -> tuple[ScheduledTask, ...]:
    """Read and encode the files of `evaluation.tasks`.

    Raises:
        ConfigError: the tokenizer or a file is missing, damaged or of another kind.
    """
    settings = config.evaluation
    if not settings.tasks:
        return ()
    try:
        tokenizer = dataset_tokenizer(config.data.corpora[0].prefix, settings.tokenizer_dir)
    except ConfigError as error:
        text = str(error).replace("--tokenizer-dir", "evaluation.tokenizer_dir")
        raise ConfigError(f"evaluation.tasks need the tokenizer: {text.partition(' Give the dataset')[0]}") from None
    found = []
    for number, task in enumerate(settings.tasks):
        interval = settings.interval if task.interval is None else task.interval
        try:
            found.append(ScheduledTask(open_task(task, tokenizer, config.model.seq_length), interval))
        except ConfigError as error:
            raise ConfigError(f"evaluation.tasks.{number}: {error}") from None
    return tuple(found)


def run_tasks(
    engine: Engine, tasks: Sequence[ScheduledTask], step: int, last: bool, say: Callable[[str], None]
) -> dict[str, Figures]:
    """The figures of the tasks that are due after `step` steps, by name; collective.

    Args:
        engine: what trains.
        tasks: all of them.
        step: steps done.
        last: no step follows.
        say: told every few seconds how far a long one is.
    """
    found: dict[str, Figures] = {}
    due = [scheduled.task for scheduled in tasks if scheduled.due(step, last)]
    if due:
        with engine.evaluating() as forward:
            model = ScoredModel(forward, engine.config, engine.groups)
            for task in due:
                found[task.name] = task.figures(score_rows(model, task.rows, on_batch=ScoringReport(task.name, say)))
    return found
