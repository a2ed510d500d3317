"""Cross-entropy over cut vocabularies against torch, and dropout masks across ranks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from megatron_slw.parallel.sharding import Shard, shard_range
from megatron_slw.testing import WorkerPool
from tests.parallel import jobs


@pytest.mark.parametrize(("size", "vocab", "padded"), [(2, 250, 256), (2, 60, 128), (3, 129, 256), (4, 512, 512)])
@pytest.mark.parametrize(("scale", "backend"), [(1.0, "auto"), (300.0, "auto"), (1.0, "torch"), (300.0, "torch")])
def test_cross_entropy_equals_torch(
    pool: WorkerPool, size: int, vocab: int, padded: int, scale: float, backend: str
) -> None:
    """`scale` 300 overflows exp() unless the maximum is taken out over all ranks."""
    generator = torch.Generator().manual_seed(size)
    logits_BTV = torch.randn(2, 5, padded, generator=generator) * scale
    labels_BT = torch.randint(vocab, (2, 5), generator=generator)
    labels_BT[0, :2] = torch.tensor([0, vocab - 1])
    exact = logits_BTV.double()[..., :vocab].requires_grad_()
    expected = F.cross_entropy(exact.flatten(0, 1), labels_BT.flatten(), reduction="none").view(2, 5)
    (expected * torch.linspace(0.5, 1.5, 10).view(2, 5)).sum().backward()
    results = pool.run(jobs.cross_entropy, size, (size, logits_BTV.numpy(), labels_BT.numpy(), vocab, backend))
    grad = np.zeros((2, 5, padded))
    for loss, part, start in results:
        assert np.allclose(loss, expected.detach().numpy(), rtol=1e-5, atol=1e-5), "the loss differs"
        grad[..., start : start + part.shape[-1]] = part
    assert exact.grad is not None, "the reference has no gradient"
    assert np.allclose(grad[..., :vocab], exact.grad.numpy(), rtol=1e-4, atol=1e-6), "the gradient differs"
    assert not grad[..., vocab:].any(), "a padding column has a gradient"


def test_replicated_dropout_has_one_mask_and_local_dropout_two(pool: WorkerPool) -> None:
    same = pool.run(jobs.dropout_masks, 2, (False, 3))
    assert np.array_equal(same[0], same[1]), "replicated activations were dropped differently"
    local = pool.run(jobs.dropout_masks, 2, (True, 3))
    for masks in (*same, *local):
        assert not np.array_equal(masks[0], masks[1]), "two calls drew one mask"
        assert np.mean(masks == 0.0) == pytest.approx(0.3, abs=0.05)
        assert np.mean(masks) == pytest.approx(1.0, abs=0.1)
    agreement = np.mean((local[0] == 0) == (local[1] == 0))
    assert agreement == pytest.approx(0.58, abs=0.06), "the ranks' masks are not independent"


@pytest.mark.parametrize("local", [False, True])
def test_recomputation_repeats_the_mask(pool: WorkerPool, local: bool) -> None:
    for out, grad in pool.run(jobs.recomputed_dropout, 2, (local,)):
        assert np.array_equal(out, grad), "the backward pass used another mask"


@pytest.mark.parametrize("size", [1, 7, 128, 384])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_parts_cover_everything_once(size: int, count: int) -> None:
    bounds = [shard_range(size, rank, count) for rank in range(count)]
    assert [i for start, stop in bounds for i in range(start, stop)] == list(range(size))
    assert max(b - a for a, b in bounds) - min(b - a for a, b in bounds) <= 1, "unbalanced parts"


def test_slice_takes_the_described_block() -> None:
    whole = torch.arange(24).view(4, 6)
    assert torch.equal(Shard("x", (4, 6), 1, 2, 5).slice(whole), whole[:, 2:5])
    assert Shard("x", (4, 6), 1, 2, 5).local_shape == (4, 3)
    assert Shard("x", (4, 6)).slice(whole) is whole
