"""DeepSpeed's own engine around transformers' GPT-2, as somebody else would run it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import deepspeed
import numpy as np
import torch
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
from transformers import GPT2Config, GPT2LMHeadModel

SIZES = {
    "vocab_size": 301, "n_positions": 48, "n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 0, "eos_token_id": 0
}  # fmt: skip
State = dict[str, np.ndarray]


def build(stage: int, load_universal: bool) -> Any:
    """Two parameter groups with rates of their own, as its users have; one to train, for after a first step of several
    DeepSpeed 0.19.8 gives the first one's moments alone."""
    torch.manual_seed(7)
    model = GPT2LMHeadModel(GPT2Config(**SIZES, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))
    flat = [param for param in model.parameters() if param.ndim == 1]
    groups = [{"params": [p for p in model.parameters() if p.ndim > 1], "lr": 3e-3}, {"params": flat, "lr": 2e-3}]
    if not load_universal:
        groups = [{"params": list(model.parameters()), "lr": 3e-3}]
    settings = {
        "train_batch_size": 4,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "checkpoint": {"load_universal": load_universal},
    }
    return deepspeed.initialize(model=model, optimizer=torch.optim.AdamW(groups), config=settings)[0]


def step(engine: Any, seed: int) -> float:
    rows = engine.train_micro_batch_size_per_gpu()
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(301, (4, 48), generator=generator)[engine.global_rank * rows :][:rows]
    loss = engine(ids, labels=ids).loss
    engine.backward(loss)
    engine.step()
    return loss.item()


def state_of(engine: Any) -> State:
    found = {}
    for name, param in engine.module.named_parameters():
        found[f"weight/{name}"] = safe_get_full_fp32_param(param)
        for kind in ("exp_avg", "exp_avg_sq"):
            found[f"{kind}/{name}"] = safe_get_full_optimizer_state(param, kind)
    return {key: value.detach().float().numpy().copy() for key, value in found.items()}


def train_and_save(folder: Path, stage: int) -> State:
    """Three steps, saved as DeepSpeed does."""
    engine = build(stage, load_universal=False)
    for number in range(3):
        step(engine, number)
    engine.save_checkpoint(str(folder), tag="global_step3")
    return state_of(engine)


def load_and_train(folder: Path, stage: int) -> dict[str, Any]:
    """What a fresh engine has of a universal checkpoint, and its loss before and after a step from there."""
    engine = build(stage, load_universal=True)
    engine.load_checkpoint(str(folder))
    state = state_of(engine)
    steps = {int(value["step"]) for value in engine.optimizer.optimizer.state.values() if "step" in value}
    rates = [group["lr"] for group in engine.optimizer.optimizer.param_groups]
    counted = engine.global_steps
    losses = [step(engine, 50), step(engine, 50)]
    return {"state": state, "steps": steps, "rates": rates, "global_steps": counted, "losses": losses}
