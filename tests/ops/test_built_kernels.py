"""What only the library of csrc/ has: instruction sets to choose from, and outputs written past the caches."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from megatron_slw.ops import library
from tests.ops.cases import CASES, FLOATS, inputs, run
from tests.ops.test_operators import WIDTHS, assert_close

LIBRARY = Path(library.__file__).parent / library.BUILT[0]
pytestmark = pytest.mark.skipif(not LIBRARY.is_file(), reason="the kernels are not built here: python csrc/build.py")


@pytest.fixture
def kernels() -> Iterator[ctypes.CDLL]:
    """The loaded library; the instruction set is put back afterwards."""
    loaded = ctypes.CDLL(str(LIBRARY))
    loaded.megatron_slw_isa.restype = ctypes.c_char_p
    before = loaded.megatron_slw_isa()
    yield loaded
    assert loaded.megatron_slw_use_isa(before) == 1


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
@pytest.mark.parametrize("name", [name for name in CASES if name not in ("linear_cross_entropy", "masked_softmax")])
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
