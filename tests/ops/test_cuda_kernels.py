"""The CUDA kernels against fp64 on the CPU, forward and backward, and the same bits twice."""

from __future__ import annotations

import pytest
import torch

from megatron_slw.ops.library import has_kernel
from tests.ops.cases import CASES, FLOATS, SOFTMAX, inputs, run
from tests.ops.test_operators import WIDTHS, assert_close

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or not has_kernel("layer_norm", "cuda"),
        reason="needs a CUDA device and the CUDA kernels: MEGATRON_SLW_CUDA=1 python csrc/build.py",
    ),
]


def compare(name: str, rows: int, width: int, dtype: torch.dtype) -> None:
    case = CASES[name]
    tensors, rest = inputs(case, rows, width, dtype), case.rest(rows, width)
    truth = run(case.truth, [x.double() for x in tensors], rest)

    def on_device() -> list[torch.Tensor]:
        leaves = [x.detach().cuda().requires_grad_() for x in tensors]
        result = case.ours(*leaves, *(x.cuda() for x in rest))
        outputs = result if isinstance(result, tuple) else (result,)
        generator = torch.Generator().manual_seed(7)
        grads = [torch.randn(y.shape, generator=generator).to(y) for y in outputs]
        return [x.cpu() for x in (*(y.detach() for y in outputs), *torch.autograd.grad(outputs, leaves, grads))]

    found, again = on_device(), on_device()
    for i, (a, b, true) in enumerate(zip(found, again, truth, strict=True)):
        assert_close(a, true, dtype, f"{name} {rows} x {width} {dtype} result {i}", slack=10.0)
        assert torch.equal(a, b) or "linear" in name, f"{name}: two runs differ"


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_sizes_off_every_tile_edge(name: str, dtype: torch.dtype) -> None:
    more = (256, 264, 1000, 1024, 1032) if name in SOFTMAX else (768, 1280, 1600, 4096, 8200)
    for width in (*WIDTHS[3:], *more):
        compare(name, 2, width, dtype)


def test_drops_what_the_cpu_drops() -> None:
    case = CASES["bias_dropout_add"]
    tensors = [x.detach() for x in inputs(case, 5, 96, torch.float32)]
    torch.testing.assert_close(case.ours(*(x.cuda() for x in tensors)).cpu(), case.ours(*tensors))
