"""The torch optimizer that DeepSpeed wraps, and gradient clipping where DeepSpeed's ZeRO does not do it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from megatron_slw.config.schema import OptimizerConfig
from megatron_slw.growth.operators.multiplier import Multiplier
from megatron_slw.growth.operators.names import split_name
from megatron_slw.parallel.groups import Groups
from megatron_slw.parallel.sharding import counts_in_norm, shard_of
from megatron_slw.train.agreement import gathered, largest_replica_sum

LR_MULTIPLIER = "lr_multiplier"
NO_MULTIPLIERS: Mapping[str, Multiplier] = MappingProxyType({})


def state_names(config: OptimizerConfig) -> tuple[str, ...]:
    """The tensors that the optimizer keeps for each parameter, by torch's names."""
    if config.type in ("Adam", "AdamW"):
        return ("exp_avg", "exp_avg_sq")
    return ("momentum_buffer",) if config.momentum > 0.0 else ()


def build_optimizer(
    config: OptimizerConfig, module: nn.Module, multipliers: Mapping[str, Multiplier] = NO_MULTIPLIERS
) -> torch.optim.Optimizer:
    """AdamW, Adam or SGD: weight decay on matrices and tables, none on biases and LayerNorms.

    Args:
        config: the rates.
        module: its parameters, each with its Shard.
        multipliers: by family of tensors; each parameter group keeps its factor of the rate as LR_MULTIPLIER, and
            gradients are multiplied as they are made.
    """
    kinds: dict[tuple[bool, Multiplier], list[nn.Parameter]] = {}
    for param in module.parameters():
        shard = shard_of(param)
        factors = multipliers.get(split_name(shard.name)[1], Multiplier())
        if factors.gradient != 1.0:
            param.register_hook(_multiplied(factors.gradient))
        decayed = len(shard.shape) > 1
        kinds.setdefault((not decayed, Multiplier(factors.lr, factors.weight_decay, factors.eps)), []).append(param)
    groups = [
        _group(config, params, decayed=not vectors, factors=factors)
        for (vectors, factors), params in sorted(kinds.items(), key=lambda item: item[0][0])
    ]
    if config.type == "SGD":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)
    kind = torch.optim.AdamW if config.type == "AdamW" else torch.optim.Adam
    return kind(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def _group(config: OptimizerConfig, params: list[nn.Parameter], decayed: bool, factors: Multiplier) -> dict[str, Any]:
    group: dict[str, Any] = {"params": params, "weight_decay": 0.0}
    if decayed:
        group["weight_decay"] = config.weight_decay * factors.weight_decay
    if factors != Multiplier():
        group[LR_MULTIPLIER] = factors.lr
        if config.type != "SGD":
            group["eps"] = config.eps * factors.eps
    return group


def _multiplied(factor: float) -> Callable[[Tensor], Tensor]:
    return lambda gradient: gradient * factor


@torch.no_grad()
def clip_by_global_norm(module: nn.Module, max_norm: float, groups: Groups) -> float:
    """Scale the gradients of a replica so that their common 2-norm is at most `max_norm`.

    The norm counts each entry of each logical tensor once: shards everywhere, replicated tensors on one rank.
    DeepSpeed's own function for fp32 without ZeRO also counts the copies of tied weights, so it is not used.

    Args:
        module: this rank's part of the replica, gradients already averaged over the data-parallel ranks.
        max_norm: 0 measures without clipping.
        groups: whose tensor x pipeline ranks share the replica.

    Returns:
        The norm before clipping, the same on every rank of every replica; infinity leaves the gradients as they are.
    """
    params = [p for p in module.parameters() if p.grad is not None]
    counted = [p.grad.float() for p in params if counts_in_norm(p) and p.grad is not None]
    squares = [norm.square() for norm in torch._foreach_norm(counted)]
    total = torch.stack(squares).sum() if squares else torch.zeros((), device=groups.device)
    norm = math.sqrt(largest_replica_sum(gathered(total, groups), groups))
    if max_norm > 0.0 and math.isfinite(norm) and norm > max_norm:
        torch._foreach_mul_([p.grad for p in params if p.grad is not None], max_norm / (norm + 1e-6))
    return norm
