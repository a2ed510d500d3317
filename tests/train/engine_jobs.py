"""What the engine tests run on each rank."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from megatron_slw.config.schema import ParallelConfig, RunConfig
from megatron_slw.data.loader import Blocks
from megatron_slw.model.gpt import GPT
from megatron_slw.model.init import initial_value, initialize_weights
from megatron_slw.parallel.groups import build_groups, one_process_groups
from megatron_slw.parallel.sharding import sharded_parameters
from megatron_slw.slw.compile import compile_plan
from megatron_slw.slw.plan import BatchStep
from megatron_slw.train.engine import Engine, NonFiniteError
from megatron_slw.train.evaluate import validation_loss
from tests.parity.runs import synthetic_blocks


class FixedWindows:
    """Stands for a ValidLoader: windows of random tokens."""

    def __init__(self, config: RunConfig, count: int) -> None:
        generator = np.random.default_rng(99)
        length = config.model.seq_length
        self.ids = generator.integers(0, config.model.vocab_size or 1, (count, length + 1), dtype=np.uint16)
        self.starts = generator.random((count, length)) < 0.2

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, first: int, count: int) -> Blocks:
        rows = self.ids[first : first + count]
        return Blocks(rows[:, :-1], rows[:, 1:], starts_BT=self.starts[first : first + count])


def make_engine(config: RunConfig) -> Engine:
    initial = partial(initial_value, model=config.model, seed=config.training.seed)
    return Engine(config, build_groups(config.parallel), initial)


def train_to(engine: Engine, first: int, stop: int, evaluate: bool = False) -> list[float]:
    plan, groups = compile_plan(engine.config), engine.groups
    losses = []
    for number in range(first, stop):
        step = plan.at(number)
        blocks = synthetic_blocks(step, engine.config.model.vocab_size or 0, groups.dp_rank, groups.dp_size)
        losses.append(engine.train_step(blocks, step, 1e-2).loss)
        if evaluate and number % 2:
            validation_loss(engine, FixedWindows(engine.config, 5), engine.config)  # type: ignore[arg-type]
    return losses


def losses(config: RunConfig, evaluate: bool) -> list[float]:
    """Every loss of the plan."""
    return train_to(make_engine(config), 0, compile_plan(config).total_steps, evaluate)


def validation(config: RunConfig, windows: int) -> float:
    """The validation loss of the untrained model."""
    return validation_loss(make_engine(config), FixedWindows(config, windows), config)  # type: ignore[arg-type]


def poisoned_step(config: RunConfig, where: str) -> tuple[str, bool]:
    """Train three steps, then one with a NaN; what was said, and whether any weight moved in that step."""
    engine = make_engine(config)
    train_to(engine, 0, 3)
    param = _victim(engine)
    if param is not None and where == "backward":
        param.register_hook(lambda grad: grad * float("nan"))
    elif param is not None:
        _poison_forward(engine)
    before = _weights(engine)
    try:
        train_to(engine, 3, 4)
    except NonFiniteError as error:
        after = _weights(engine)
        return str(error), any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    return "nothing was said", True


def _victim(engine: Engine) -> Any:
    """The first layer's feed-forward bias, on the last rank that holds it and in no other."""
    groups = engine.groups
    if groups.dp_rank != groups.dp_size - 1:
        return None
    for shard, param in sharded_parameters(engine.ds.module):
        if shard.name == "layers.0.mlp.dense_h_to_4h.bias":
            return param
    return None


def _poison_forward(engine: Engine) -> None:
    """A layer's output becomes NaN on this rank."""
    for module in engine.ds.module.modules():
        if type(module).__name__ == "MLP":
            module.register_forward_hook(lambda module, inputs, output: output * float("nan"))


def _weights(engine: Engine) -> list[torch.Tensor]:
    return [
        (p.ds_tensor if engine.config.zero_stage == 3 else p).detach().clone() for p in engine.ds.module.parameters()
    ]


def _plain_model(config: RunConfig) -> GPT:
    model = GPT(config.model_copy(update={"parallel": ParallelConfig()}), one_process_groups())
    initialize_weights(model, config.model, config.training.seed)
    return model.eval()


def _nll(config: RunConfig, tokens: np.ndarray, labels: np.ndarray) -> torch.Tensor:
    with torch.no_grad():
        logits = _plain_model(config)(torch.from_numpy(tokens.astype(np.int64)))[..., : config.model.vocab_size]
    flat = torch.from_numpy(labels.astype(np.int64)).flatten()
    return F.cross_entropy(logits.double().flatten(0, 1), flat, reduction="none").view(labels.shape)


def mean_by_hand(config: RunConfig, windows: int) -> float:
    """The mean over all labels of the windows, by the plain model at once."""
    blocks = FixedWindows(config, windows).read(0, windows)
    return float(_nll(config, blocks.tokens_BT, blocks.labels_BT).mean())


def mean_document_by_document(config: RunConfig, windows: int) -> float:
    """The same where positions and attention begin anew: each document of a window is run alone."""
    blocks = FixedWindows(config, windows).read(0, windows)
    assert blocks.starts_BT is not None, "no documents"
    total = 0.0
    for tokens, labels, starts in zip(blocks.tokens_BT, blocks.labels_BT, blocks.starts_BT, strict=True):
        inner = [start for start in np.flatnonzero(starts) if start > 0]
        for first, stop in itertools.pairwise([0, *inner, len(tokens)]):
            total += float(_nll(config, tokens[None, first:stop], labels[None, first:stop]).sum())
    return total / blocks.labels_BT.size


def _masked_blocks(config: RunConfig, dp_rank: int, dp_size: int) -> tuple[BatchStep, Blocks]:
    step = compile_plan(config).at(0)
    blocks = synthetic_blocks(step, config.model.vocab_size or 0, dp_rank, dp_size)
    mask = (np.random.default_rng(1).random((step.rows, step.seq_len)) < 0.3).astype(np.float32)
    mask[:3] = 0.0  # a whole micro-batch without a label that counts
    share = step.rows // dp_size
    return step, Blocks(blocks.tokens_BT, blocks.labels_BT, mask[dp_rank * share : (dp_rank + 1) * share])


def masked_loss(config: RunConfig) -> float:
    """The loss of the first step under a mask."""
    engine = make_engine(config)
    step, blocks = _masked_blocks(config, engine.groups.dp_rank, engine.groups.dp_size)
    return engine.train_step(blocks, step, 1e-3).loss


def masked_mean_by_hand(config: RunConfig) -> float:
    """The same by the plain model."""
    _, blocks = _masked_blocks(config, 0, 1)
    assert blocks.loss_mask_BT is not None, "no mask"
    mask = torch.from_numpy(blocks.loss_mask_BT).double()
    return float((_nll(config, blocks.tokens_BT, blocks.labels_BT) * mask).sum() / mask.sum())
