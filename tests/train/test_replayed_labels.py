"""A replayed sample trains exactly the labels that were cut off: the loss and gradients of a full pass over them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from megatron_slw.config.schema import CurriculumConfig, RunConfig
from megatron_slw.data.loader import TrainLoader
from megatron_slw.data.windows import open_windows
from megatron_slw.model.gpt import GPT
from megatron_slw.model.init import initial_value
from megatron_slw.parallel.groups import build_groups, one_process_groups
from megatron_slw.parallel.sharding import sharded_parameters
from megatron_slw.slw.compile import compile_plan
from megatron_slw.testing import WorkerPool, tiny_config, write_tiny_dataset
from megatron_slw.train.engine import Engine

RATE = 64.0  # so large that the rounding of the new weight hardly shows in the change


def stepped(config: RunConfig, number: int) -> tuple[float, list[tuple[str, int, np.ndarray]]]:
    """One SGD step of rate RATE from the initial weights: the loss, and each block's change / -RATE, its gradient."""
    groups = build_groups(config.parallel)
    engine = Engine(config, groups, partial(initial_value, model=config.model, seed=1))
    before = [p.detach().clone() for _, p in sharded_parameters(engine.ds.module)]
    loader = TrainLoader(open_windows(config.data, config.model.seq_length, "train"), seed=1)
    step = compile_plan(config).at(number)
    result = engine.train_step(loader.read(step, groups.dp_rank, groups.dp_size), step, RATE)
    after = sharded_parameters(engine.ds.module)
    changes = zip(before, after, strict=True)
    return result.loss, [(s.name, s.start, ((old - new) / RATE).detach().numpy()) for old, (s, new) in changes]


def by_hand(config: RunConfig, number: int) -> tuple[float, dict[str, np.ndarray]]:
    """Whole samples through a plain model in fp64; the mean over the labels that the plan says count."""
    loader = TrainLoader(open_windows(config.data, config.model.seq_length, "train"), seed=1)
    slices = compile_plan(config).at(number).slices(0, config.train_batch_size)
    rows = np.stack([loader.windows.gather(loader.sample_windows(int(s), 1), 32)[0] for s in slices.sample])
    ids = torch.from_numpy(rows.astype(np.int64))
    model = GPT(config, one_process_groups()).double()
    with torch.no_grad():
        for shard, param in sharded_parameters(model):
            param.copy_(initial_value(shard, config.model, 1))
    logits = model(ids[:, :-1])[..., : config.model.vocab_size]
    loss_BT = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    chosen = torch.arange(32) >= torch.from_numpy(slices.first_trained)[:, None]
    loss = loss_BT[chosen].mean()
    loss.backward()
    return loss.item(), {s.name: p.grad.numpy() for s, p in sharded_parameters(model)}


@pytest.mark.parametrize("world_size", [1, 2])
def test_loss_and_gradients_of_the_same_labels_in_a_full_pass(
    pool: WorkerPool, tmp_path: Path, world_size: int
) -> None:
    """A step that holds samples cut at 8 and at 20: micro-batches and replicas have unequal numbers of labels."""
    write_tiny_dataset(tmp_path / "data", documents=60)
    rows = CurriculumConfig(
        mode="batch_size", schedule_type="fixed_discrete", min_difficulty=8, max_difficulty=12, difficulty=(8, 12),
        max_step=(1,),
    )  # fmt: skip
    config = tiny_config(
        tmp_path, optimizer={"type": "SGD", "lr": RATE, "weight_decay": 0.0}, gradient_clipping=0.0,
        world_size=world_size,
        curriculum={"mode": "seqlen_replay", "difficulty": (8, 20, 32), "max_step": (3, 5)}, train_batch_size=12,
        training={"train_steps": 12}, batch_warmup=rows,
    )  # fmt: skip
    steps = [step for step in map(compile_plan(config).at, range(12)) if step.rows == 12]
    number = next(step.step for step in steps if len(set(step.slices(0, 12).first_trained)) > 1)
    ranks = pool.run(stepped, world_size, (config, number))
    loss, expected = by_hand(config, number)
    for got, gradients in ranks:
        assert got == pytest.approx(loss, rel=1e-6)
        for name, _, gradient in gradients:
            scale = np.abs(expected[name]).max()
            np.testing.assert_allclose(gradient, expected[name], rtol=0, atol=1e-4 * scale, err_msg=name)
