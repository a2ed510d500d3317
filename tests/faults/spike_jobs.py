"""What the tests of spikes run on each rank: faults put into one rank's loss or gradient, none of it by flags."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from megatron_slw.config.schema import RunConfig
from megatron_slw.slw.compile import compile_plan
from megatron_slw.train.engine import Engine, StepRefused
from megatron_slw.train.engine_state import ensure_optimizer_state, optimizer_steps, read_scaler
from tests.checkpoint.jobs import State, state_of
from tests.parity.runs import synthetic_blocks
from tests.train.engine_jobs import make_engine

FACTORS = {"nan": float("nan"), "inf": float("inf"), "spike": 1e6, "rise": 3e3}
BAD_STEP, STEPS = 3, 7
RATE = 1e-2


@contextlib.contextmanager
def faulty(engine: Engine, place: str, factor: float, rank: int) -> Iterator[None]:
    """On one rank: its loss, its gradient, or one of its gradients after they were averaged, times a factor."""
    if engine.groups.rank != rank:
        yield
    elif place == "loss":
        with _faulty_loss(engine, factor):
            yield
    elif place == "gradient":
        param = max(engine.ds.module.parameters(), key=lambda param: param.shard.name)
        hook = param.register_hook(lambda gradient: gradient * factor)
        try:
            yield
        finally:
            hook.remove()
    else:
        take = engine._take_model_step

        def spoilt(lr_kwargs: Any) -> None:
            param = max(engine.ds.module.parameters(), key=lambda param: param.shard.name)
            assert param.grad is not None, "no gradient to spoil"
            param.grad.mul_(factor)
            take(lr_kwargs)

        engine._take_model_step = spoilt
        try:
            yield
        finally:
            engine._take_model_step = take


@contextlib.contextmanager
def _faulty_loss(engine: Engine, factor: float) -> Iterator[None]:
    module = engine.ds.module
    owner, name = (module, "loss_fn") if engine.groups.pp_size > 1 else (module.output_head, "loss")
    whole = getattr(owner, name)
    inner: Any = owner._modules.pop(name, None)
    object.__setattr__(owner, name, lambda outputs, targets: whole(outputs, targets) * factor)
    try:
        yield
    finally:
        object.__delattr__(owner, name) if inner is not None else object.__setattr__(owner, name, whole)
        if inner is not None:
            owner._modules[name] = inner


def take_step(engine: Engine, number: int, judge: Callable[[float, float | None], str | None] | None = None) -> float:
    groups = engine.groups
    step = compile_plan(engine.config).at(number)
    blocks = synthetic_blocks(step, engine.config.model.vocab_size or 0, groups.dp_rank, groups.dp_size)
    return engine.train_step(blocks, step, RATE, judge).loss  # type: ignore[arg-type]


def whole_state(engine: Engine) -> State:
    state = state_of(SimpleNamespace(engine=engine))  # type: ignore[arg-type]
    lower = [p.ds_tensor if engine.config.zero_stage == 3 else p for p in engine.ds.module.parameters()]
    for i, param in enumerate(lower):
        state[f"trained/{i}"] = param.detach().float().numpy().copy()
    scaler = [float(value) for value in (read_scaler(engine) or {}).values()]
    return state | {"steps": np.array(optimizer_steps(engine) or 0), "loss scaler": np.array(scaler)}


def differing(before: State, after: State) -> list[str]:
    return [key for key, value in before.items() if not np.array_equal(value, after[key])]


def places(config: RunConfig, kinds: tuple[str, ...] = ("nan", "inf", "spike")) -> list[tuple[str, str, int]]:
    """(kind, place, rank): every fault that this layout can have."""
    world, last = config.world_size, config.world_size - config.world_size // config.parallel.pipeline
    found = [(kind, "loss", rank) for kind in kinds for rank in range(last, world)]
    found += [(kind, "gradient", rank) for kind in kinds for rank in range(world)]
    if config.zero_stage == 0:
        found += [(kind, "averaged gradient", rank) for kind in kinds for rank in range(world)]
    return found


def stands_out(loss: float, grad_norm: float | None) -> str | None:
    if loss > 50.0:
        return "the loss stands out"
    return "the gradient norm stands out" if grad_norm is not None and grad_norm > 10.0 else None


def refused_in_turn(config: RunConfig, faults: list[tuple[str, str, int]]) -> dict[str, Any]:
    """Train with one step refused over and over, each time for another fault, and then left out."""
    engine = make_engine(config)
    ensure_optimizer_state(engine)
    losses = [take_step(engine, number) for number in range(BAD_STEP)]
    before = whole_state(engine)
    wrong = []
    for kind, place, rank in faults:
        said = "nothing"
        with faulty(engine, place, FACTORS[kind], rank):
            try:
                take_step(engine, BAD_STEP, stands_out)
            except StepRefused as error:
                said = str(error)
        expected = "not finite" if kind in ("nan", "inf") else "stands out"
        moved = differing(before, whole_state(engine))
        if expected not in said or moved:
            wrong.append((kind, place, rank, said, moved[:3]))
    losses += [take_step(engine, number, stands_out) for number in range(BAD_STEP + 1, STEPS)]
    return {"wrong": wrong, "losses": losses, "state": whole_state(engine)}


def judged_and_reported(config: RunConfig) -> list[tuple[float, float, float, float]]:
    """(judged loss, reported loss, judged norm, reported norm) of each step."""
    engine, found = make_engine(config), []
    for number in range(STEPS):
        seen: list[float] = []

        def judge(loss: float, grad_norm: float | None, seen: list[float] = seen) -> None:
            seen[:] = [loss, grad_norm if grad_norm is not None else 0.0]

        groups, step = engine.groups, compile_plan(config).at(number)
        blocks = synthetic_blocks(step, config.model.vocab_size or 0, groups.dp_rank, groups.dp_size)
        result = engine.train_step(blocks, step, RATE, judge)  # type: ignore[arg-type]
        found.append((seen[0], result.loss, seen[1], result.grad_norm))
    return found


def left_out(config: RunConfig) -> dict[str, Any]:
    """The same without that step."""
    engine = make_engine(config)
    ensure_optimizer_state(engine)
    losses = [take_step(engine, number) for number in range(STEPS) if number != BAD_STEP]
    return {"losses": losses, "state": whole_state(engine)}


def fp16(job: Callable[..., Any], *args: Any) -> Any:
    """A job in fp16, which DeepSpeed refuses on CPUs without fp16 instructions although torch computes it."""
    from deepspeed.accelerator import get_accelerator

    torch.manual_seed(0)
    accelerator = get_accelerator()
    original, accelerator.is_fp16_supported = accelerator.is_fp16_supported, lambda: True
    try:
        return job(*args)
    finally:
        accelerator.is_fp16_supported = original


def unjudged(config: RunConfig) -> list[str]:
    """What a spike changes against the same step without it."""
    states = []
    for factor in (1.0, FACTORS["spike"]):
        engine = make_engine(config)
        ensure_optimizer_state(engine)
        with faulty(engine, "gradient", factor, 0):
            take_step(engine, 0)
        states.append(whole_state(engine))
    return differing(*states)
