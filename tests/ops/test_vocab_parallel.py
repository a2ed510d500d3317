"""The vocabulary cut over ranks: the same loss and gradients, and nothing of the size of the logits is reduced.

The ranks take turns in one process: a reduction stands for the all-reduce by looking up what the others would send.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_slw.ops.cross_entropy import combine, cross_entropy_statistics, vocab_parallel_cross_entropy
from megatron_slw.ops.linear_cross_entropy import vocab_parallel_linear_cross_entropy

ROWS, SIZE, VOCAB = 13, 8, 50
CUTS = ((0, 50), (0, 20, 50), (0, 17, 34, 50), (0, 50, 50))
"""Where the ranks' columns begin and end; the last cut leaves a rank nothing but padding."""


def reductions(logits: Tensor, labels: Tensor, cut: tuple[int, ...]) -> tuple[Callable, Callable, list[tuple]]:
    """Stand-ins for the all-reduces, and the shapes that went through them."""
    shapes: list[tuple] = []
    parts = [cross_entropy_statistics(logits[:, a:b], labels, a, b - a) for a, b in zip(cut, cut[1:], strict=False)]
    tops = torch.stack([top for top, _, _ in parts]).amax(0)

    def reduce_max(x: Tensor) -> Tensor:
        shapes.append(tuple(x.shape))
        return tops

    def reduce_sum(x: Tensor) -> Tensor:
        shapes.append(tuple(x.shape))
        sums = []
        for part, a, b in zip(parts, cut, cut[1:], strict=False):
            here = (labels >= a) & (labels < b)
            combine(part, here, lambda _: tops, lambda mine: sums.append(mine) or mine)
        return torch.stack(sums).sum(0)

    return reduce_max, reduce_sum, shapes


@pytest.mark.parametrize("spread", [1.0, 1000.0])
@pytest.mark.parametrize("cut", CUTS)
def test_same_as_one_rank(cut: tuple[int, ...], spread: float) -> None:
    generator = torch.Generator().manual_seed(5)
    hidden = (torch.randn(ROWS, SIZE, generator=generator) * spread).requires_grad_()
    weight = torch.randn(VOCAB, SIZE, generator=generator).requires_grad_()
    labels = torch.randint(VOCAB, (ROWS,), generator=generator)
    grad = torch.randn(ROWS, generator=generator)
    true_hidden, true_weight = hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    true_loss = F.cross_entropy(true_hidden @ true_weight.T, labels, reduction="none")
    true_grads = torch.autograd.grad(true_loss, (true_hidden, true_weight), grad.double())
    logits = (hidden @ weight.T).detach()
    reduce_max, reduce_sum, shapes = reductions(logits, labels, cut)
    sums = torch.zeros_like(hidden)
    for a, b in zip(cut, cut[1:], strict=False):
        mine = logits[:, a:b].clone().requires_grad_()
        loss = vocab_parallel_cross_entropy(mine, labels, a, b - a, reduce_max, reduce_sum)
        torch.testing.assert_close(loss.double(), true_loss, rtol=1e-5, atol=1e-5 * spread)
        (found,) = torch.autograd.grad(loss, mine, grad)
        here = F.one_hot(labels, VOCAB).double()
        true = ((true_hidden @ true_weight.T).softmax(-1) - here)[:, a:b] * grad.double()[:, None]
        torch.testing.assert_close(found.double(), true.detach(), rtol=1e-3, atol=1e-5 * spread)
        part = weight[a:b]
        loss = vocab_parallel_linear_cross_entropy(hidden, part, labels, a, b - a, reduce_max, reduce_sum)
        of_hidden, of_weight = torch.autograd.grad(loss, (hidden, part), grad)
        torch.testing.assert_close(of_weight.double(), true_grads[1][a:b], rtol=1e-3, atol=1e-4 * spread)
        sums += of_hidden
    torch.testing.assert_close(sums.double(), true_grads[0], rtol=1e-3, atol=1e-4 * spread)
    assert set(shapes) == {(ROWS,), (2, ROWS)}
