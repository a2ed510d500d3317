"""What only the library of csrc/ has: instruction sets to choose from, and outputs written past the caches."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Iterator

import pytest
import torch

from megatron_slw.ops.choice import BUILT, FOLDER
from megatron_slw.ops.softmax import causal_softmax
from tests.ops.cases import CASES, FLOATS, inputs, run
from tests.ops.test_operators import WIDTHS, assert_close

LIBRARY = FOLDER / BUILT["cpu"]
pytestmark = pytest.mark.skipif(not LIBRARY.is_file(), reason="the kernels are not built here: python csrc/build.py")


@pytest.fixture
def kernels() -> Iterator[ctypes.CDLL]:
    """The loaded library; the instruction set is put back afterwards."""
    loaded = ctypes.CDLL(str(LIBRARY))
    loaded.megatron_slw_isa.restype = ctypes.c_char_p
    before = loaded.megatron_slw_isa()
    yield loaded
    assert loaded.megatron_slw_use_isa(before) == 1


def unseen_scores(matrices: int, size: int, negative: bool) -> tuple[torch.Tensor, ...]:
    """Scores whose unseen half is NaN, a row of nothing but -infinity, and a scale."""
    scores = torch.randn(matrices, size, size, generator=torch.Generator().manual_seed(size + matrices))
    scores[0, size // 2, : size // 2 + 1] = float("inf") if negative else float("-inf")
    hidden = torch.ones(size, size, dtype=torch.bool).triu(1)
    return scores.masked_fill(hidden, float("nan")), hidden, torch.tensor(-0.4 if negative else 0.4)


@pytest.mark.parametrize("isa", [b"scalar", b"avx2", b"avx512"])
@pytest.mark.parametrize("size", [8, 16, 24, 40, 64, 65, 100, 256, 257, 516, 529])
def test_causal_softmax_of_any_size(kernels: ctypes.CDLL, isa: bytes, size: int) -> None:
    """A number of matrices that fills no register, unseen scores that are not numbers, rows of -infinity, any sign."""
    if not kernels.megatron_slw_use_isa(isa):
        pytest.skip(f"this processor has no {isa.decode()}")
    for matrices, negative in ((1, False), (3, False), (3, True)):
        scores, hidden, scale = unseen_scores(matrices, size, negative)
        truth = (scores.double() * scale.double()).masked_fill(hidden, float("-inf")).softmax(-1).nan_to_num(0.0)
        found = causal_softmax(scores, float(scale))
        torch.testing.assert_close(found.double(), truth, rtol=2e-6, atol=1e-8)
        grad = torch.randn(scores.shape).masked_fill(hidden, float("nan"))
        dot = (grad.nan_to_num(0.0).double() * truth).sum(-1, keepdim=True)
        true_grad = truth * (grad.nan_to_num(0.0).double() - dot) * float(scale)
        back = torch.ops.megatron_slw.causal_softmax_backward(grad, found, float(scale), None)
        torch.testing.assert_close(back.double(), true_grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [8, 40, 64, 100, 257, 529])
def test_softmax_has_the_same_bits_whatever_the_threads(size: int) -> None:
    """Rows are cut among threads in the middle of matrices."""
    scores, before = torch.randn(max(3, 200_000 // size**2), size, size), torch.get_num_threads()
    grad = torch.randn_like(scores)
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            y = causal_softmax(scores, 0.3)
            results.append((y, torch.ops.megatron_slw.causal_softmax_backward(grad, y, 0.3, None)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [8, 16, 32, 72, 100, 256, 272, 600, 1000, 1024])
def test_softmax_past_the_caches(size: int, dtype: torch.dtype) -> None:
    """Streamed outputs whose rows begin with a line or anywhere in it: no gap, the bits of the same rows alone."""
    count = 25 * 2**20 // dtype.itemsize // size**2 + 1
    scores, grad = torch.randn(count, size, size).to(dtype), torch.randn(count, size, size).to(dtype)
    y = causal_softmax(scores, 0.3)
    back = torch.ops.megatron_slw.causal_softmax_backward(grad, y, 0.3, None)
    for part in (slice(0, 1), slice(count // 2, count // 2 + 1), slice(count - 1, count)):
        alone = causal_softmax(scores[part], 0.3)
        assert torch.equal(alone, y[part])
        small = torch.ops.megatron_slw.causal_softmax_backward(grad[part], alone, 0.3, None)
        assert torch.equal(small, back[part])


@pytest.mark.parametrize("isa", [b"scalar", b"avx2", b"avx512"])
def test_every_instruction_set_is_right(kernels: ctypes.CDLL, isa: bytes) -> None:
    if not kernels.megatron_slw_use_isa(isa):
        pytest.skip(f"this processor has no {isa.decode()}")
    assert kernels.megatron_slw_isa() == isa
    for name, case in CASES.items():
        for width in WIDTHS[3:]:
            for dtype in FLOATS if width in (17, 48) else FLOATS[:1]:
                tensors, rest = inputs(case, 2, width, dtype), case.rest(2, width)
                truth = run(case.truth, [x.double() for x in tensors], rest)
                for found, true in zip(run(case.ours, tensors, rest), truth, strict=True):
                    assert_close(found, true, dtype, f"{isa.decode()} {name} {width} {dtype}")


def test_unknown_instruction_set_is_refused(kernels: ctypes.CDLL) -> None:
    before = kernels.megatron_slw_isa()
    assert kernels.megatron_slw_use_isa(b"sse9") == 0 and kernels.megatron_slw_isa() == before


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", [name for name in CASES if "linear" not in name and name != "masked_softmax"])
def test_large_outputs_written_past_the_caches(name: str, dtype: torch.dtype) -> None:
    """What is large enough to be streamed has the bits of the same rows computed as a small part, and no gap."""
    case = CASES[name]
    width = 384
    rows = 25 * 2**20 // (torch.finfo(dtype).bits // 8) // (width * (2 * width if "softmax" in name else 3)) + 1
    with torch.no_grad():
        tensors = [x.detach() for x in inputs(case, rows, width, dtype)]
        rest = case.rest(rows, width)
        whole = case.ours(*tensors, *rest)
        for first in (0, rows - 2):
            count = {rows: slice(first, first + 2), 3 * rows: slice(3 * first, 3 * first + 6)}
            if "dropout" in name and first:
                continue  # the mask depends on the place in the tensor
            part = [x[count[x.size(0)]] if x.size(0) in count else x for x in (*tensors, *rest)]
            small = case.ours(*part)
            for a, b in zip(*(r if isinstance(r, tuple) else (r,) for r in (whole, small)), strict=True):
                assert torch.equal(a[count[a.size(0)]], b)


@pytest.mark.skipif(shutil.which("nm") is None, reason="nm is not installed")
def test_library_needs_no_unstable_symbol() -> None:
    """Symbols of at:: or c10:: change between versions of PyTorch; the stable ABI's do not."""
    command = ["nm", "-D", "--undefined-only", str(LIBRARY)]
    names = [line.split()[-1] for line in subprocess.run(command, capture_output=True, text=True).stdout.splitlines()]
    assert any(name.startswith("aoti_torch_") for name in names)
    assert not [name for name in names if name.startswith(("_ZN2at", "_ZNK2at", "_ZN3c10", "_ZNK3c10", "_ZN5torch"))]
