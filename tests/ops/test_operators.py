"""Every operator against fp64, forward and backward, whichever implementation serves it here."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from megatron_slw.ops.dropout_residual import bias_dropout_add, draw_seed
from megatron_slw.ops.softmax import causal_softmax
from tests.ops.cases import CASES, FLOATS, NORM, SEED, SOFTMAX, inputs, run, seen_by_document

WIDTHS = (1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 127, 129, 200)
TOLERANCE = {torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2, torch.float64: 1e-13}


def assert_close(found: Tensor, truth: Tensor, dtype: torch.dtype, what: str, slack: float = 1.0) -> None:
    """The norm of the difference over that of the truth; near zero it is absolute. NaN never passes."""
    assert found.shape == truth.shape and found.dtype in (dtype, torch.float32, torch.float64), what
    difference = (found.double() - truth).abs()
    limit = slack * TOLERANCE[dtype] * max(1.0, float(truth.norm()))
    assert float(difference.norm()) <= limit, f"{what}: off by {float(difference.norm())} of {float(truth.norm())}"


def compare(name: str, rows: int, width: int, dtype: torch.dtype, spread: float = 1.0) -> None:
    case = CASES[name]
    tensors, rest = inputs(case, rows, width, dtype, spread), case.rest(rows, width)
    truth = run(case.truth, [x.double() for x in tensors], rest)
    slack = 30.0 if name in NORM and width == 1 else 1.0  # no variance: rounding is multiplied by eps ** -0.5 = 316
    for i, (found, true) in enumerate(zip(run(case.ours, tensors, rest), truth, strict=True)):
        assert_close(found, true, dtype, f"{name} {rows} x {width} {dtype} result {i}", slack)


@pytest.mark.parametrize("name", CASES)
def test_widths_off_every_tile_edge(name: str) -> None:
    for width in WIDTHS:
        compare(name, 2, width, torch.float32)


@pytest.mark.parametrize("dtype", [*FLOATS, torch.float64], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_types(name: str, dtype: torch.dtype) -> None:
    for width in (5, 48, 97):
        compare(name, 3, width, dtype)


@pytest.mark.parametrize("width", [768, 1280, 1600, 4096, 5003])
@pytest.mark.parametrize("name", [name for name in CASES if name not in SOFTMAX])
def test_widths_of_models(name: str, width: int) -> None:
    compare(name, 3, width, torch.float32)


@pytest.mark.parametrize("name", ["causal_softmax", "masked_softmax"])
def test_long_rows(name: str) -> None:
    compare(name, 1, 1031, torch.float32)


def test_longest_rows() -> None:
    """16,384 keys and over, with few queries so that the test stays small."""
    x = torch.randn(3, 2, 16400, requires_grad=True)
    y = causal_softmax(x, 0.5)
    scaled = (x.detach().double() * 0.5)
    scaled[:, 0, -1] = float("-inf")
    torch.testing.assert_close(y.double(), scaled.softmax(-1), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", [*SOFTMAX, "cross_entropy"])
def test_large_magnitudes(name: str) -> None:
    """exp of a raw score would overflow."""
    compare(name, 2, 33, torch.float32, spread=1e4)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", NORM)
def test_all_equal_rows_have_no_variance(name: str, dtype: torch.dtype) -> None:
    """The output is the bias; E[x^2] - E[x]^2 would be noise, or below zero."""
    rows, width = 4, 100
    tensors = [torch.full(shape, 999.0, dtype=dtype) for shape in CASES[name].shapes(rows, width)]
    tensors[-1] = torch.linspace(-1, 1, width).to(dtype)
    result = CASES[name].ours(*tensors)
    y = result[0] if isinstance(result, tuple) else result
    torch.testing.assert_close(y, tensors[-1].expand_as(y), rtol=0, atol=1e-2 if dtype != torch.float32 else 1e-4)


def test_offset_rows_keep_their_variance() -> None:
    x = (torch.randn(8, 768) + 3000.0).requires_grad_()
    truth = torch.nn.functional.layer_norm(x.detach().double(), (768,))
    ours = CASES["layer_norm"].ours(x, torch.ones(768), torch.zeros(768))
    assert isinstance(ours, Tensor), "two results"
    # The mean's own rounding is 1e-4; E[x^2] - E[x]^2 would be off by 0.5.
    assert float((ours.detach().double() - truth).norm() / truth.norm()) < 5e-4


@pytest.mark.parametrize("name", CASES)
def test_empty(name: str) -> None:
    """No rows: empty outputs, zero gradients of what is shared by the rows."""
    case = CASES[name]
    tensors = inputs(case, 0, 12, torch.float32)
    rest = tuple(x[:0] for x in case.rest(1, 12))
    for found, true in zip(run(case.ours, tensors, rest), run(case.truth, tensors, rest), strict=True):
        torch.testing.assert_close(found, true)


@pytest.mark.parametrize("name", CASES)
def test_non_contiguous_inputs(name: str) -> None:
    """Every other element of a wider tensor, and one with its axes turned, give what their copy gives."""
    case, rows, width = CASES[name], 2, 24
    dense, rest = inputs(case, rows, width, torch.float32), case.rest(rows, width)
    expected = run(case.ours, dense, rest)
    strided = [x.detach().repeat_interleave(2, dim=-1)[..., ::2] for x in dense]
    turned = [x.detach().movedim(-1, 0).contiguous().movedim(0, -1) for x in dense]
    for tensors in (strided, turned):
        for found, true in zip(run(case.ours, tensors, rest), expected, strict=True):
            torch.testing.assert_close(found, true, rtol=2e-6, atol=2e-6)  # a plain sum's order follows the strides


@pytest.mark.parametrize("name", CASES)
def test_same_bits_with_any_number_of_threads(name: str) -> None:
    case = CASES[name]
    tensors, rest = inputs(case, 40, 129, torch.float32), case.rest(40, 129)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(run(case.ours, tensors, rest))
    finally:
        torch.set_num_threads(before)
    if "linear" not in name:  # its products are the BLAS library's
        assert all(torch.equal(x, y) for result in results[1:] for x, y in zip(results[0], result, strict=True))


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("size", [12, 40, 100, 200])
def test_what_is_masked_is_not_read(size: int, documents: bool) -> None:
    """NaN in the masked half, of the scores or of the gradient, reaches nothing."""
    hidden = torch.ones(size, size, dtype=torch.bool).triu(1).expand(2, 3, size, size)
    first = seen_by_document(2, size) if documents else None
    if first is not None:
        hidden = hidden | (torch.arange(size) < first[:, None, :, None])
    x = torch.randn(2, 3, size, size)
    clean, dirty = x.clone().requires_grad_(), x.masked_fill(hidden, float("nan")).requires_grad_()
    grad = torch.randn(2, 3, size, size)
    y = causal_softmax(dirty, 0.5, first)
    assert torch.equal(y, causal_softmax(clean, 0.5, first)) and not y.detach().masked_select(hidden).any()
    (found,) = torch.autograd.grad(y, dirty, grad.masked_fill(hidden, float("nan")))
    (true,) = torch.autograd.grad(causal_softmax(clean, 0.5, first), clean, grad)
    assert torch.equal(found, true)


def test_dropout_share_seed_and_scale() -> None:
    x, residual = torch.ones(1000, 100), torch.zeros(1000, 100)
    y = bias_dropout_add(x, None, residual, SEED, 0.1)
    assert abs(float((y == 0).float().mean()) - 0.1) < 0.005
    assert set(y.unique().tolist()) == {0.0, float(torch.tensor(1.0) / (1.0 - 0.1))}
    assert torch.equal(y, bias_dropout_add(x, None, residual, SEED, 0.1))
    assert not torch.equal(y, bias_dropout_add(x, None, residual, SEED + 1, 0.1))
    torch.manual_seed(3)
    first = draw_seed("cpu"), draw_seed("cpu", rank=1)
    torch.manual_seed(3)
    assert (draw_seed("cpu"), draw_seed("cpu", rank=1)) == first


def test_bad_shapes_are_refused() -> None:
    x = torch.zeros(2, 4, 3)
    with pytest.raises(RuntimeError, match="4 queries see only 3 keys"):
        causal_softmax(x)
    with pytest.raises(RuntimeError, match="scale is 0"):
        causal_softmax(x[..., :2, :], 0.0)
    with pytest.raises(RuntimeError, match="first must be"):
        causal_softmax(torch.zeros(2, 3, 3), 1.0, torch.zeros(3, 3, dtype=torch.int64))
    with pytest.raises(RuntimeError, match="columns"):
        CASES["layer_norm"].ours(x, torch.zeros(4), torch.zeros(4))
    with pytest.raises(RuntimeError, match="int64 labels"):
        CASES["cross_entropy"].ours(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int32))
