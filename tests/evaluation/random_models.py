"""Small models with random weights for the evaluation tests."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from megatron_slw.model.gpt import GPT
from megatron_slw.model.init import initial_value
from megatron_slw.parallel.groups import one_process_groups
from megatron_slw.parallel.sharding import sharded_parameters
from megatron_slw.testing import tiny_config


def random_model(folder: Path, vocab_size: int = 300, std: float = 0.3, **changes: Any) -> GPT:
    """A two-layer GPT of full length 32; a large std makes it prefer some tokens clearly."""
    config = tiny_config(folder, model__vocab_size=vocab_size, model__init_method_std=std, **changes)
    model = GPT(config, one_process_groups())
    fill = partial(initial_value, model=config.model, seed=config.training.seed)
    with torch.no_grad():
        for shard, param in sharded_parameters(model):
            param.copy_(fill(shard))
    return model.eval()


class FixedLogits(nn.Module):
    """Gives the same logits at every position, and remembers the lengths it was called with."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.logits_V = nn.Parameter(torch.tensor(logits))
        self.lengths: list[int] = []

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """(B, T) to (B, T, V)."""
        self.lengths.append(tokens_BT.size(1))
        return self.logits_V.expand(*tokens_BT.shape, -1)
