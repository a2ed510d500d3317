"""From a command line to the curves of a plan: runs that were made, sizes that are predicted."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

from megatron_slw.config.errors import ConfigError, show
from megatron_slw.config.json_file import read_json
from megatron_slw.config.schema import ModelConfig, RunConfig
from megatron_slw.growth.planner.calibration import Calibrated
from megatron_slw.growth.planner.fit import Fit, fit
from megatron_slw.growth.planner.law import Law, kaplan
from megatron_slw.growth.planner.plan import growth_slope
from megatron_slw.growth.planner.points import SHARE_LEFT_OUT, Points, Reader, TooShort
from megatron_slw.report.reading import ReadingReport
from megatron_slw.train.estimate import flops_per_token
from megatron_slw.train.metrics import FILE_NAME, stream_metrics

CONFIG_NAME = "config.json"
MOST_SIZE = 10**6


@dataclass(frozen=True)
class Size:
    """Of a model, as a plan sees it."""

    layers: int
    hidden: int

    @property
    def parameters(self) -> int:
        """But the tables, with a feed-forward layer of four times the width: 12 L C^2."""
        return 12 * self.layers * self.hidden**2

    def __str__(self) -> str:
        return f"{self.layers} layers x {self.hidden}"


@dataclass(frozen=True)
class Stage:
    """One model of a plan with its curve."""

    size: Size | None
    """None where the run directory does not say it."""
    law: Law
    resampled: tuple[Law, ...]
    fit: Fit | None = None
    """None for a curve that is predicted."""
    points: Points | None = None
    model: ModelConfig | None = None
    """Of the run; None where its directory does not say it."""
    name: str = ""
    """Of the run."""

    @property
    def is_measured(self) -> bool:
        """Whether there is a run of this size."""
        return self.fit is not None


def parse_size(text: str) -> Size:
    """`12x768`: layers and hidden size; ConfigError where it is something else."""
    found = re.fullmatch(r"([0-9]{1,7})x([0-9]{1,7})", text)
    sizes = tuple(map(int, found.groups())) if found else ()
    if not sizes or not all(0 < size <= MOST_SIZE for size in sizes):
        raise ConfigError(f"{show(text)} is not a size: give layers and hidden size, like 12x768.")
    return Size(*sizes)


def read_stages(runs: Sequence[str], law: Size | None, targets: Sequence[Size]) -> list[Stage]:
    """The stages of a plan, smallest first: measured ones, then predicted ones.

    Args:
        runs: run directories or their metrics.jsonl, each of a larger model than the one before.
        law: the size that begins instead of a run, with the published law for its curve.
        targets: sizes to grow to, without a run.

    Raises:
        ConfigError: a file cannot be read or has no curve yet, or the sizes do not ascend.
    """
    if bool(runs) == (law is not None):
        raise ConfigError("a plan begins with a run or with --law SIZE: give one of them.")
    if len(runs) + len(targets) + (law is not None) < 2:
        raise ConfigError("a plan has two stages at least: give --target SIZE, or the run of a larger model.")
    stages = [measured_stage(run) for run in runs]
    if law is not None:
        stages.append(Stage(law, kaplan(law.parameters), ()))
    for size in targets:
        stages.append(_predicted(stages, size))
    for small, large in pairwise(stages):
        if large.law.cost <= small.law.cost:
            raise ConfigError(f"{describe(large)} is not larger than {describe(small)}: give the smallest model first.")
    return stages


def describe(stage: Stage) -> str:
    """The stage in a few words."""
    size = str(stage.size) if stage.size is not None else "size unknown"
    return f"{stage.name} ({size})" if stage.name else size


def measured_stage(run: str, left_out: float = SHARE_LEFT_OUT) -> Stage:
    """A run directory, or its metrics.jsonl, with its curve; ConfigError where there is none yet.

    Args:
        run: the path.
        left_out: see `Reader.points`.
    """
    path = Path(run)
    path = path / FILE_NAME if path.is_dir() else path
    model = _model(path.with_name(CONFIG_NAME))
    reader = Reader(model.seq_length if model is not None else None)
    try:
        with ReadingReport(path.stat().st_size) as report:
            for number, record in stream_metrics(path, report):
                try:
                    reader.take(record)
                except ConfigError as error:
                    raise ConfigError(f"{path}: line {number} {error}") from None
        points = reader.points(left_out)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}. Give a run directory.") from None
    except TooShort as error:
        raise ConfigError(f"{path} has no curve to judge yet: {error}. Train on.") from None
    cost = points.flops_per_token
    if model is not None:
        cost = float(flops_per_token(model, model.seq_length))
    if not cost > 0.0:
        raise ConfigError(f"{path} has no FLOPs, and no {CONFIG_NAME} beside it names the model. Give a run directory.")
    found = fit(points.tokens, points.losses, cost)
    size = Size(model.num_layers, model.hidden_size) if model is not None else None
    return Stage(size, found.law, found.resampled, found, points, model, path.resolve().parent.name)


def _model(path: Path) -> ModelConfig | None:
    if not path.exists():
        return None
    try:
        return RunConfig.model_validate(read_json(path)).model
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except ValueError:
        raise ConfigError(f"{path} is no resolved configuration: restore it, or take it away.") from None


def _predicted(stages: Sequence[Stage], size: Size) -> Stage:
    """From the largest measured model."""
    if all(not stage.is_measured for stage in stages) and stages[0].law.batch_power:
        return Stage(size, kaplan(size.parameters), ())
    base = [stage for stage in stages if stage.is_measured][-1]
    if base.size is None or base.model is None:
        raise ConfigError(f"{base.name} has no {CONFIG_NAME} beside its {FILE_NAME}, which a prediction needs.")
    ratio = size.parameters / base.size.parameters
    cost = float(flops_per_token(_resized(base.model, size), base.model.seq_length))
    larger = partial(Law.larger, ratio=ratio, cost=cost)
    return Stage(size, larger(base.law), tuple(larger(law) for law in base.resampled))


def _resized(model: ModelConfig, size: Size) -> ModelConfig:
    ffn = model.ffn_size * size.hidden // model.hidden_size
    sizes = {"num_layers": size.layers, "hidden_size": size.hidden, "ffn_hidden_size": ffn}
    return model.model_copy(update=sizes)


def factors(small: Stage, large: Stage) -> tuple[float, float] | None:
    """By which depth and width grow; None where sizes are not known."""
    if small.size is None or large.size is None:
        return None
    return large.size.layers / small.size.layers, large.size.hidden / small.size.hidden


def default_slopes(stages: Sequence[Stage], calibrated: Calibrated | None = None) -> list[float | None]:
    """The calibrated or the published slope of each growth; None, where it saves the most, where sizes are not known.

    Raises:
        ConfigError: the calibration is of none of these growths.
    """
    pairs = [factors(small, large) for small, large in pairwise(stages)]
    if calibrated is not None and calibrated.factors not in pairs:
        depth, width = calibrated.factors
        raise ConfigError(
            f"the calibration is of {depth:g} x depth and {width:g} x width, and no growth here is: calibrate the one "
            "that is meant."
        )
    return [
        None if pair is None
        else calibrated.slope.value if calibrated is not None and pair == calibrated.factors
        else growth_slope(*pair)
        for pair in pairs
    ]  # fmt: skip


def check_slopes(slopes: Sequence[float], stop_slope: float | None, growths: int) -> None:
    """ConfigError unless these can be slopes of a loss curve, none or one for each growth."""
    if slopes and len(slopes) != growths:
        raise ConfigError(f"--slope is given {len(slopes)} times, but there are {growths} growths: give one for each.")
    for name, slope in (*(("--slope", slope) for slope in slopes), ("--stop-slope", stop_slope)):
        if slope is not None and not -10.0 < slope < 0.0:
            raise ConfigError(f"{name} {slope:g} is no slope of a falling loss: give a number below 0, like -0.05.")


def is_extrapolated(stage: Stage, tokens: float) -> bool:
    """Whether a point lies well beyond what was measured of its curve."""
    return stage.fit is None or not math.isfinite(tokens) or tokens > 1.25 * stage.fit.last
