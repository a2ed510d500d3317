"""The learning rate of every step: warmup by steps or tokens, then decay by tokens.

With a length warmup the tokens per step grow, so a decay by steps would spend the high learning rates on a
few short sequences; the paper decays by tokens (arXiv 2108.06084), and so does this.
"""

from __future__ import annotations

import math

from megatron_slw.config.errors import ConfigError
from megatron_slw.config.schema import RunConfig
from megatron_slw.growth.record import GrowthRecord
from megatron_slw.slw.plan import Plan


def learning_rate(config: RunConfig, plan: Plan, step: int, growth: GrowthRecord | None = None) -> float:
    """Return the learning rate of the 0-based `step`: a pure function, so nothing of it is saved or restored.

    Warmup is linear from 0 to `optimizer.lr`: step s of `lr_warmup_steps` W has (s + 1) / W of it, and by
    tokens it is the tokens trained once the step is done over `lr_warmup_tokens`. From the token count at the
    end of the warmup the rate then decays to `min_lr`, which it reaches with the step that brings the tokens
    to `lr_decay_tokens` (None: the last step of the plan) and keeps. A `constant` rate does not decay.

    A model that grew stands elsewhere in its schedule: the tokens are counted less `growth.lr_shift_tokens`. Over the
    first W of its steps the rate rises to what it is W steps after the growth: the i-th has i / W of that (as in arXiv
    2203.06211).

    Raises:
        IndexError: the step is not in the plan.
        ConfigError: warmup is given by steps and by tokens.
    """
    if growth is None:
        return _scheduled(config, plan, step, 0)
    done = step - growth.step
    if 0 <= done < growth.rewarmup_steps:
        risen = min(growth.step + growth.rewarmup_steps, plan.total_steps - 1)
        share = (done + 1) / growth.rewarmup_steps
        return share * _scheduled(config, plan, risen, growth.lr_shift_tokens)
    return _scheduled(config, plan, step, growth.lr_shift_tokens)


def _scheduled(config: RunConfig, plan: Plan, step: int, shift: int) -> float:
    training, peak = config.training, config.optimizer.lr
    tokens = plan.at(step).after.tokens - shift
    if training.lr_warmup_steps and training.lr_warmup_tokens:
        raise ConfigError(
            f"training.lr_warmup_steps ({training.lr_warmup_steps}) and training.lr_warmup_tokens "
            f"({training.lr_warmup_tokens}) exclude each other: keep one"
        )
    if training.lr_warmup_tokens:
        origin = training.lr_warmup_tokens
    else:
        warmup_steps = training.lr_warmup_steps or 0
        if step < warmup_steps and not shift:
            return peak * (step + 1) / warmup_steps
        origin = plan.progress_at(warmup_steps).tokens
    if tokens < origin:  # by steps only where the schedule is shifted
        return peak * max(0, tokens) / origin
    if training.lr_decay_style == "constant":
        return peak
    end = plan.tokens_trained - shift if training.lr_decay_tokens is None else training.lr_decay_tokens
    if tokens >= end:
        return training.min_lr
    done = (tokens - origin) / (end - origin)
    left = 1.0 - done if training.lr_decay_style == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    return training.min_lr + left * (peak - training.min_lr)
