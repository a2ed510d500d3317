"""The training state inside DeepSpeed's optimizers, one tensor at a time: masters, moments, step, loss scale.

DeepSpeed flattens and partitions the fp32 state over the data-parallel ranks. Its `safe_get_*` functions assemble one
parameter's tensor from the partitions (a collective over those ranks); its setters copy a whole tensor's own part in.
At ZeRO 0 in fp32 they give None: there the torch optimizer holds everything.
"""

from __future__ import annotations

from typing import Any

import torch
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_get_local_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn

from megatron_slw.checkpoint.state import SCALER_FIELDS
from megatron_slw.train.engine import Engine
from megatron_slw.train.optim import state_names

WEIGHT = "weight"


def tensor_kinds(engine: Engine) -> tuple[str, ...]:
    """The kinds of tensor that each parameter has: its fp32 master weight, then the optimizer's."""
    return (WEIGHT, *state_names(engine.config.optimizer))


def read_tensor(engine: Engine, param: nn.Parameter, kind: str) -> Tensor:
    """The whole fp32 tensor of one kind for this rank's block of a parameter; collective over data-parallel ranks."""
    if engine.config.zero_stage == 0:
        return param.detach() if kind == WEIGHT else engine.torch_optimizer.state[param][kind]
    value = safe_get_full_fp32_param(param) if kind == WEIGHT else safe_get_full_optimizer_state(param, kind)
    if value is None:
        raise RuntimeError(f"DeepSpeed has no {kind} for {param.shard.name}")  # type: ignore[attr-defined]
    return value


def write_tensor(engine: Engine, param: nn.Parameter, kind: str, value: Tensor) -> None:
    """Set what `read_tensor` reads. Weights in lower precision are not touched: they are filled before `Engine`."""
    if engine.config.zero_stage == 0:
        target = param.data if kind == WEIGHT else engine.torch_optimizer.state[param][kind]
        target.copy_(value)
    elif engine.config.zero_stage == 3:
        part = _partition(param, value, engine)
        if kind == WEIGHT:
            safe_set_local_fp32_param(param, part)
        else:
            safe_set_local_optimizer_state(param, part, kind)
    elif kind == WEIGHT:
        safe_set_full_fp32_param(param, value)
    else:
        safe_set_full_optimizer_state(param, value, kind)


def write_weight(engine: Engine, param: nn.Parameter, value: Tensor) -> None:
    """Set the weight that the forward pass uses, a rounding of the master; in fp32 under ZeRO it is a copy of it."""
    if engine.config.zero_stage < 3:
        param.data.copy_(value)
        return
    param.ds_tensor.data.copy_(_partition(param, value, engine))  # type: ignore[attr-defined]
    if param.data.numel() == value.numel():  # small ones stay whole on every rank
        param.data.copy_(value.view_as(param.data))


def local_fragment(engine: Engine, param: nn.Parameter, kind: str) -> Tensor | None:
    """This rank's own part of an optimizer tensor, flat, without ZeRO's padding; a view, no communication.

    At ZeRO 0 that is the whole of the rank's block. None where other data-parallel ranks hold all of it.
    """
    if engine.config.zero_stage == 0:
        return engine.torch_optimizer.state[param][kind].view(-1)
    if engine.config.zero_stage < 3:
        mapping = param._hp_mapping  # type: ignore[attr-defined]
        return None if mapping is None else mapping.get_optim_state_fragment(kind)
    size = param.ds_tensor.numel()  # type: ignore[attr-defined]
    count = min(size, param.ds_numel - engine.groups.dp_rank * size)  # type: ignore[attr-defined]
    return safe_get_local_optimizer_state(param, kind)[:count] if count > 0 else None


def ensure_optimizer_state(engine: Engine, steps: int | None = None) -> None:
    """Create the moments that the optimizer would create at its first step, as zeros; set its step if given.

    To be called before the first step. ZeRO 1 and 2 step one parameter group after the other and link the moments of
    all groups to their parameters after the first of these steps, when those of the second do not exist yet: the
    second group's moments could then never be read (DeepSpeed 0.19.8).
    """
    names = state_names(engine.config.optimizer)
    for tensor in _stepped_tensors(engine):
        state = engine.torch_optimizer.state[tensor]
        for name in names:
            if name not in state:
                state[name] = torch.zeros_like(tensor, dtype=torch.float32)
        if engine.config.optimizer.type != "SGD" and ("step" not in state or steps is not None):
            fused = engine.torch_optimizer.defaults.get("fused")
            state["step"] = torch.tensor(float(steps or 0), device=tensor.device if fused else "cpu")
    link = getattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state", None)
    if link is not None and names:
        link()


def zero_optimizer_state(engine: Engine) -> None:
    """Put moments and step counts back to those of an optimizer that has not stepped."""
    for tensor in _stepped_tensors(engine):
        for value in engine.torch_optimizer.state[tensor].values():
            if isinstance(value, Tensor):
                value.zero_()


def optimizer_steps(engine: Engine) -> int | None:
    """Updates that the optimizer counts (fewer than training steps where fp16 skipped some); None for SGD."""
    for tensor in _stepped_tensors(engine):
        step = engine.torch_optimizer.state[tensor].get("step")
        if step is not None:
            return int(step)
    return None


def read_scaler(engine: Engine) -> dict[str, Any] | None:
    """fp16's dynamic loss scale and its counters; None in other precisions."""
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    if engine.config.precision != "fp16" or scaler is None:
        return None
    return {name: getattr(scaler, name) for name in SCALER_FIELDS if hasattr(scaler, name)}


def write_scaler(engine: Engine, values: dict[str, Any]) -> None:
    """Set what `read_scaler` reads."""
    for name, value in values.items():
        setattr(engine.optimizer.loss_scaler, name, value)


def _stepped_tensors(engine: Engine) -> list[Tensor]:
    """The fp32 tensors that the torch optimizer steps: parameters at ZeRO 0, else DeepSpeed's flat partitions."""
    if engine.config.zero_stage == 3:
        return list(engine.optimizer.fp32_partitioned_groups_flat)  # its param groups are empty between steps
    return [p for group in engine.torch_optimizer.param_groups for p in group["params"]]


def _partition(param: nn.Parameter, value: Tensor, engine: Engine) -> Tensor:
    """This rank's ZeRO-3 part of a whole tensor, zero-padded at the end of the last rank's."""
    size = param.ds_tensor.numel()  # type: ignore[attr-defined]
    flat = value.flatten()
    first = engine.groups.dp_rank * size
    part = torch.zeros(size, dtype=value.dtype, device=value.device)
    mine = flat[first : first + size]
    part[: mine.numel()] = mine
    return part
