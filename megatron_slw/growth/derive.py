"""The configuration and the state of a grown run: schedule position, progress, plan, multipliers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from megatron_slw.checkpoint.load import Checkpoint
from megatron_slw.checkpoint.state import TrainingState
from megatron_slw.config.errors import ConfigError, show
from megatron_slw.config.import_path import import_paths
from megatron_slw.config.load import resolve
from megatron_slw.config.overrides import OUR_KEY, apply_overrides
from megatron_slw.config.schema import ModelConfig, RunConfig
from megatron_slw.config.write import to_tree
from megatron_slw.growth.moments import multipliers
from megatron_slw.growth.operators.multiplier import Multiplier
from megatron_slw.growth.operators.width import width_of
from megatron_slw.growth.record import GrowthRecord
from megatron_slw.growth.sizes import describe
from megatron_slw.growth.stage import Stage
from megatron_slw.progress import Progress
from megatron_slw.slw.compile import compile_plan
from megatron_slw.slw.plan import Plan
from megatron_slw.slw.skipped import Skipped
from megatron_slw.slw.spikes import SpikeWindow
from megatron_slw.slw.stability import Stability
from megatron_slw.train.estimate import parameters

Dynamics = Literal["retarget", "exact"]
REWARMUP_STEPS, REWARMUP_SHARE = 200, 10
POSITIONS = {(2, 1): 0.708, (1, 2): 0.563, (2, 2): 0.407}
"""By (depth, width) factor: the share of its steps after which the larger model, trained from scratch, has the smaller
one's loss (arXiv 2203.06211)."""
POSITION_EXPONENT = -0.43
"""Between and beyond these the share is (parameters after / before) ** this, which fits the three to 5 %."""
MODEL_SIZES = (
    "num_layers", "hidden_size", "num_attention_heads", "ffn_hidden_size", "vocab_size", "seq_length",
    "layernorm_epsilon", "activation",
)  # fmt: skip


@dataclass(frozen=True)
class Options:
    """What is asked for beside the sizes."""

    dynamics: Dynamics = "retarget"
    position: float | None = None
    """Share of the schedule's position that the grown model goes on from; None takes `equivalent_share`."""
    rewarmup_steps: int | None = None
    """None is REWARMUP_STEPS, or a tenth of the steps left where these are fewer."""
    seed: int = 0


@dataclass(frozen=True)
class GrownRun:
    """The run that the grown checkpoint belongs to."""

    config: RunConfig
    tree: dict[str, Any]
    """The JSON file for it."""
    progress: Progress
    plan: Plan
    record: GrowthRecord
    state: TrainingState
    """Of the grown checkpoint."""
    stage_multipliers: tuple[dict[str, Multiplier], ...]
    """What each stage multiplies the gradients by, relative to the stage before."""


def equivalent_share(old: ModelConfig, new: ModelConfig) -> float:
    """The share of the small model's steps after which the large one would have its loss; see POSITIONS."""
    depth, width = new.num_layers / old.num_layers, new.hidden_size / old.hidden_size
    known = {(float(d), float(w)): share for (d, w), share in POSITIONS.items()}
    ratio = _blocks(new) / _blocks(old)
    return known.get((depth, width), ratio**POSITION_EXPONENT)


def derive(
    checkpoint: Checkpoint, stages: Sequence[Stage], save: Path, options: Options, overrides: Sequence[str]
) -> GrownRun:
    """Everything about the grown run but its tensors.

    The clock goes on where it stood: the same data, lengths and batches. Where that cannot be, because the full length
    or the batch or the curriculum is another for the steps already trained, it begins again at 0, with what is left to
    train and another order of the data.

    Args:
        checkpoint: the small model's.
        stages: at least one.
        save: where the grown checkpoint goes; the run directory follows from it.
        options: of the dynamics.
        overrides: settings of the grown run, `--optimizer.params.lr=1e-3` and the like.

    Raises:
        ConfigError: the settings do not fit each other or the growth.
    """
    target = stages[-1].model
    tree = _target_tree(checkpoint, target, save, options)
    tree, paths = apply_overrides(tree, overrides)
    _check_imports(checkpoint, tree, paths)
    config = _resolved(tree, checkpoint.config.world_size, target)
    restarts = _must_restart(checkpoint, config)
    if restarts:
        if options.dynamics == "exact":
            raise ConfigError(
                "--dynamics exact goes on with the same lengths and batches, but the full length, the batch or the "
                "curriculum changes. Use --dynamics retarget."
            )
        _restart(tree, paths, checkpoint)
        config = _resolved(tree, checkpoint.config.world_size, target)
    same_plan = not restarts and config.training == checkpoint.config.training
    decisions = checkpoint.pacing.decisions if checkpoint.pacing is not None and not restarts else ()
    plan = checkpoint.plan if same_plan else compile_plan(config, decisions)
    progress = Progress() if restarts else checkpoint.progress
    own = _stage_multipliers(checkpoint, stages, options)
    record = _record(checkpoint, config, stages, options, progress, plan, own)
    state = replace(
        checkpoint.state,
        progress=progress,
        plan=plan,
        config=config,
        dataset=_dataset(checkpoint, config, paths),
        growth=record,
        spike_window=SpikeWindow(),  # of another model
    )
    if restarts:  # what was measured on the other clock
        state = replace(state, stability=Stability(), pacing=None, skipped=Skipped())
    return GrownRun(config, tree, progress, plan, record, state, own)


def _check_imports(checkpoint: Checkpoint, tree: dict[str, Any], given: Sequence[str]) -> None:
    """A checkpoint must not choose code that runs: what it names is said again by the user, or taken away."""
    for path, value in import_paths(tree).items():
        if path not in given:
            raise ConfigError(
                f"{checkpoint} its {path} is {show(value)}, the import path of code that runs. Give --{path}={value} "
                f"where you trust it, --{path}=null where not."
            )


def run_directory(save: Path) -> Path:
    """The run directory that a checkpoint at `save` belongs to."""
    return save.parent.parent if save.parent.name == "checkpoints" else save.parent


def _target_tree(checkpoint: Checkpoint, target: ModelConfig, save: Path, options: Options) -> dict[str, Any]:
    tree = to_tree(checkpoint.config)
    ours = tree[OUR_KEY]
    ours["model"] |= {name: getattr(target, name) for name in MODEL_SIZES}
    ours["model"] = {name: value for name, value in ours["model"].items() if value is not None}
    ours["logging"]["directory"] = str(run_directory(save))
    ours["training"].pop("grow_when", None)  # it would end the grown run at once: its curve is past that point
    ours["checkpoint"].pop("load", None)
    ours["checkpoint"].pop("directory", None)
    if save.parent.name != "checkpoints":
        ours["checkpoint"]["directory"] = str(save.parent)
    training = checkpoint.config.training
    if options.dynamics == "retarget" and training.lr_warmup_steps:  # in a shifted schedule steps have no meaning
        del ours["training"]["lr_warmup_steps"]
        ours["training"]["lr_warmup_tokens"] = checkpoint.plan.progress_at(training.lr_warmup_steps).tokens
    return tree


def _resolved(tree: dict[str, Any], world_size: int, target: ModelConfig) -> RunConfig:
    config = resolve(tree, world_size)
    for name in MODEL_SIZES:
        if getattr(config.model, name) != getattr(target, name):
            raise ConfigError(
                f"model.{name} {getattr(config.model, name)} is not the grown model's {getattr(target, name)}. Remove "
                "it: sizes are given by --depth, --width, --layers, --hidden-size, --heads, --ffn, --vocab-size and "
                "--seq-length."
            )
    return config


def _must_restart(checkpoint: Checkpoint, config: RunConfig) -> bool:
    old, saved = checkpoint.config, checkpoint.progress
    names = ("curriculum", "batch_warmup", "train_batch_size")
    if old.model.seq_length != config.model.seq_length:
        return True
    if all(getattr(old, name) == getattr(config, name) for name in names):
        return False
    plan = compile_plan(config)
    return saved.step > plan.total_steps or plan.progress_at(saved.step) != saved


def _restart(tree: dict[str, Any], paths: Sequence[str], checkpoint: Checkpoint) -> None:
    """Begin the clock again: what is left to train, and another order of the data."""
    training, saved = tree[OUR_KEY]["training"], checkpoint.progress
    for name, done in (("train_tokens", saved.tokens), ("train_steps", saved.step), ("train_samples", saved.samples)):
        if training.get(name) is None or f"{OUR_KEY}.training.{name}" in paths:
            continue
        left = training[name] - done
        if left <= 0:
            raise ConfigError(
                f"nothing of training.{name} {training[name]} is left to train after {done}. Give "
                f"--training.{name}, of the stage that follows."
            )
        training[name] = left
    if f"{OUR_KEY}.training.seed" not in paths:
        training["seed"] = training["seed"] + 1


def _stage_multipliers(
    checkpoint: Checkpoint, stages: Sequence[Stage], options: Options
) -> tuple[dict[str, Multiplier], ...]:
    """exact: each stage's own; retarget: the first takes away what earlier growths left, the others add nothing."""
    before = checkpoint.growth.multipliers if checkpoint.growth is not None else {}
    if options.dynamics == "retarget":
        undo = {family: Multiplier(gradient=1.0 / factors.gradient) for family, factors in before.items()}
        return (undo, *({} for _ in stages[1:]))
    found = []
    sizes = checkpoint.config.model
    optimizer = checkpoint.config.optimizer
    if optimizer.type == "SGD" or (optimizer.type == "Adam" and optimizer.weight_decay > 0):
        raise ConfigError(
            f"--dynamics exact needs decoupled weight decay: optimizer.type AdamW, not {optimizer.type}. Use "
            "--dynamics retarget."
        )
    for stage in stages:
        try:
            if stage.model.num_layers != sizes.num_layers:
                raise ValueError("new layers learn from the first step on")
            found.append(multipliers(width_of(sizes, stage.model, stage.width_operator, None, options.seed)))
        except ValueError as error:
            raise ConfigError(
                f"--dynamics exact cannot be had for {describe(sizes)} -> {describe(stage.model)}: {error}. Grow the "
                "width by whole factors alone, or use --dynamics retarget."
            ) from None
        sizes = stage.model
    return tuple(found)


def _record(
    checkpoint: Checkpoint,
    config: RunConfig,
    stages: Sequence[Stage],
    options: Options,
    progress: Progress,
    plan: Plan,
    own: Sequence[dict[str, Multiplier]],
) -> GrowthRecord:
    before = checkpoint.growth or GrowthRecord(step=progress.step)
    sizes, lines = checkpoint.config.model, list(before.history)
    for stage in stages:
        lines.append(
            f"step {checkpoint.progress.step}: {describe(sizes)} -> {describe(stage.model)}, "
            f"width {stage.width_operator}, depth {stage.depth_operator}, {options.dynamics}"
        )
        sizes = stage.model
    if options.dynamics == "exact":
        total = dict(before.multipliers)
        for factors in own:
            for family, factor in factors.items():
                total[family] = total.get(family, Multiplier()).times(factor)
        return replace(before, multipliers=total, history=tuple(lines))
    share = options.position
    if share is None:
        share = equivalent_share(checkpoint.config.model, config.model)
    position = round(share * (checkpoint.progress.tokens - before.lr_shift_tokens))
    rewarmup = options.rewarmup_steps
    if rewarmup is None:
        rewarmup = min(REWARMUP_STEPS, (plan.total_steps - progress.step) // REWARMUP_SHARE)
    return GrowthRecord(progress.step, progress.tokens - position, rewarmup, {}, tuple(lines))


def _dataset(checkpoint: Checkpoint, config: RunConfig, paths: Sequence[str]) -> Any:
    """What the data is compared with at resume; nothing where other data is meant."""
    saved = checkpoint.state.dataset
    other = config.model.vocab_size != checkpoint.config.model.vocab_size
    if saved is None or other or any(path.startswith(f"{OUR_KEY}.data.") for path in paths):
        return None
    facts = {"seed": config.training.seed, "seq_length": config.model.seq_length}
    return saved | {name: value for name, value in facts.items() if name in saved}


def _blocks(model: ModelConfig) -> int:
    """Parameters but the tables."""
    tables = (model.padded_vocab_size + model.seq_length) * model.hidden_size
    return parameters(model) - tables
