"""The chunked head and loss: many chunks against all logits in fp64, padding rows, tiny weights, wrong labels."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_slw.ops import choice
from megatron_slw.ops.backend import select_operators
from megatron_slw.ops.choice import picks_chunked_loss, rows_of_chunk
from megatron_slw.ops.cross_entropy import check_labels, cross_entropy
from megatron_slw.ops.library import has_kernel
from megatron_slw.ops.linear_cross_entropy import linear_cross_entropy, weighted_linear_cross_entropy

ROWS, SIZE, REAL, PADDED = 37, 12, 50, 128


def given(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, a table with padding rows, labels, and weights of which some are 0."""
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(ROWS, SIZE, generator=generator).to(dtype).requires_grad_()
    table = torch.randn(PADDED, SIZE, generator=generator).to(dtype).requires_grad_()
    labels = torch.randint(REAL, (ROWS,), generator=generator)
    return hidden, table, labels, torch.rand(ROWS, generator=generator) * (torch.arange(ROWS) % 3 > 0)


@pytest.mark.parametrize("rows", [1, 7, 37, 64])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_any_number_of_chunks_gives_the_loss_of_all_logits(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, rows: int
) -> None:
    """fp64 to 1e-12; both forms, the padding rows left out and their gradient 0."""
    monkeypatch.setitem(choice.LOSS_CHUNK, "cpu", rows * PADDED * dtype.itemsize)
    assert rows_of_chunk(PADDED, dtype.itemsize, "cpu") == rows
    hidden, table, labels, weights = given(dtype)
    wide = [x.detach().double().requires_grad_() for x in (hidden, table)]
    true = (F.cross_entropy(wide[0] @ wide[1][:REAL].T, labels, reduction="none") * weights).sum()
    expected = [true.detach(), *torch.autograd.grad(2.5 * true, wide)]
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    for loss in (
        weighted_linear_cross_entropy(hidden, table, labels, weights, REAL),
        (linear_cross_entropy(hidden, table, labels, REAL) * weights).sum(),
    ):
        found = [loss.detach(), *torch.autograd.grad(2.5 * loss, (hidden, table))]
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance)
        assert not found[2][REAL:].any(), "a padding row has a gradient"
    with torch.no_grad():
        quiet = weighted_linear_cross_entropy(hidden, table, labels, weights, REAL)
    torch.testing.assert_close(quiet.double(), true.detach(), rtol=tolerance, atol=tolerance)


def test_small_weights_keep_their_gradient_in_fp16() -> None:
    """A label's weight is 1 / labels of the batch: in fp16 such gradients would be 0 before the loss scale came."""
    hidden, table, labels, weights = given(torch.float16)
    loss = weighted_linear_cross_entropy(hidden, table, labels, weights * 1e-8, REAL)
    grads = torch.autograd.grad(loss * 2.0**24, (hidden, table))
    wide = [x.detach().double().requires_grad_() for x in (hidden, table)]
    true = (F.cross_entropy(wide[0] @ wide[1][:REAL].T, labels, reduction="none") * weights).sum() * 1e-8 * 2.0**24
    for found, expected in zip(grads, torch.autograd.grad(true, wide), strict=True):
        assert float((found.double() - expected).norm() / expected.norm()) < 2e-3


def test_without_any_weight_the_gradient_is_exactly_zero() -> None:
    hidden, table, labels, weights = given(torch.float32)
    loss = weighted_linear_cross_entropy(hidden, table, labels, weights * 0.0, REAL)
    assert loss == 0.0
    assert not any(bool(g.any()) for g in torch.autograd.grad(loss, (hidden, table)))


LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "fused": lambda x, w, labels: cross_entropy(x @ w.T, labels),
    "torch": lambda x, w, labels: select_operators("torch", "cpu").cross_entropy(x @ w.T, labels, 9),
    "auto": lambda x, w, labels: select_operators("auto", "cpu").cross_entropy(x @ w.T, labels, 9),
    "chunked": lambda x, w, labels: linear_cross_entropy(x, w, labels),
    "chunked-real": lambda x, w, labels: linear_cross_entropy(x, torch.cat([w, w]), labels, w.size(0)),
    "weighted": lambda x, w, labels: weighted_linear_cross_entropy(x, w, labels, torch.zeros(len(labels))),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("label", [-1, -100, 9, 2**40])
def test_a_label_outside_the_vocabulary_is_an_error(name: str, label: int) -> None:
    """Also -100, which F.cross_entropy would ignore, and also where its weight is 0."""
    x, w = torch.randn(4, 3, requires_grad=True), torch.randn(9, 3)
    with pytest.raises(IndexError, match=f"label {label} is outside the vocabulary of 9"):
        LOSSES[name](x, w, torch.tensor([0, 8, label, 1]))
    LOSSES[name](x, w, torch.tensor([0, 8, 8, 1]))


def test_labels_on_a_device_are_checked_there() -> None:
    """No number comes back to the host: what is asserted stays a tensor (meta stands for CUDA here)."""
    check_labels(torch.empty(5, dtype=torch.int64, device="meta"), 9)
    check_labels(torch.empty(0, dtype=torch.int64), 9)


def test_auto_goes_by_the_size_of_all_logits() -> None:
    chunk = choice.LOSS_CHUNK["cpu"]
    assert not picks_chunked_loss("auto", chunk, 1, "cpu") and picks_chunked_loss("auto", chunk + 1, 1, "cpu")
    assert not picks_chunked_loss("auto", 2**30, 2, "cpu") and picks_chunked_loss("auto", 2**30 + 1, 2, "cpu")
    assert picks_chunked_loss("chunked", 1, 1, "cpu") and not picks_chunked_loss("logits", 2**40, 1, "cuda")
    assert rows_of_chunk(50304, 2, "cuda") == 640 and rows_of_chunk(10**9, 4, "cpu") == 1


def test_built_is_what_the_dispatcher_sees() -> None:
    """The estimate asks for the file, the operators ask PyTorch."""
    assert choice.is_built("cpu") == has_kernel("layer_norm", "cpu")
    assert not choice.is_built("xpu")
