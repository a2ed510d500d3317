"""Operators of megatron_slw/ops on the CPU beside ATen and beside a memcpy of the bytes that they must move.

    python benchmarks/kernels_cpu.py [--only softmax] [--megabytes 64] [--threads 1] [--json FILE]

The three take turns, so that a busy machine slows all of them. "of copy" is the memcpy's time over ours: the memcpy
moves as many bytes as the operator's floor (docs/kernels.md), each input element read once and each output element
written once. "lines" is the same for the whole lines of 64 bytes that these lie in, which is what memory moves: of
16 x 16 scores every line has a key that is seen. "x ATen" is the time of PyTorch's own operators over ours. All are
medians over the turns of the ratio within a turn, in processor time. "goal" is the share of a copy that is asked for at
this size, where one is; with it goes 1.0 x ATen at every size.
The table is written to benchmarks/results/kernels_cpu.json. About three minutes on an idle machine.
Freed memory is kept by the process: else page faults of fresh outputs would be most of every figure.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import machine
from megatron_slw.ops import bias_gelu, cross_entropy, dropout_residual, layer_norm, softmax  # noqa: F401  declare
from megatron_slw.ops.library import has_kernel

OPS = torch.ops.megatron_slw
RESULTS = Path(__file__).parent / "results" / "kernels_cpu.json"
LINE = 64


@dataclass(frozen=True)
class Case:
    """One operator at one size; `floor` in bytes."""

    name: str
    size: str
    floor: int
    ours: Callable[[], object]
    aten: Callable[[], object]
    goal: float | None = None
    """The share of a copy that is asked for; None asks for none."""
    lines: int | None = None
    """Bytes of the lines that the floor lies in; None where they are the same."""


def seen_lines(batch: int, length: int, itemsize: int) -> int:
    """Bytes of the lines with keys that are seen, of `batch` matrices one after the other."""
    hidden = torch.ones(batch, length, length, dtype=torch.bool).triu_(1).flatten()
    per_line = LINE // itemsize
    return int((~F.pad(hidden, (0, -len(hidden) % per_line), value=True).view(-1, per_line)).any(1).sum()) * LINE


def softmax_cases(elements: int, dtype: torch.dtype) -> Iterator[Case]:
    """Scores (A, S, S) of about `elements` elements; ATen scales, masks and takes the softmax."""
    for length in (8, 16, 64, 128, 256, 512, 1000, 1024, 2048, 4096):
        batch = max(1, elements // length**2)
        x = torch.randn(batch, length, length).to(dtype)
        g = torch.randn(batch, length, length).to(dtype)
        hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
        y = OPS.causal_softmax(x, 0.125, None)

        def eager(x: Tensor = x, hidden: Tensor = hidden) -> Tensor:
            return torch.softmax((x * 0.125).masked_fill(hidden, float("-inf")), -1)

        def eager_backward(g: Tensor = g, y: Tensor = y, hidden: Tensor = hidden) -> Tensor:
            return torch._softmax_backward_data(g, y, -1, y.dtype).masked_fill(hidden, 0.0) * 0.125

        triangle, square = batch * length * (length + 1) // 2 * x.element_size(), x.nbytes
        size, lines = f"{batch} x {length} x {length}", seen_lines(batch, length, x.element_size())
        yield Case(
            "causal_softmax forward", size, triangle + square,
            lambda x=x: OPS.causal_softmax(x, 0.125, None), eager, 0.80, lines + square,
        )  # fmt: skip
        yield Case(
            "causal_softmax backward", size, 2 * triangle + square,
            lambda g=g, y=y: OPS.causal_softmax_backward(g, y, 0.125, None), eager_backward, 0.85,
            2 * lines + square,
        )  # fmt: skip


def layer_norm_cases(elements: int, dtype: torch.dtype) -> Iterator[Case]:
    """Rows of model widths."""
    for width in (192, 768, 1024, 1280, 1600, 4096, 8192):
        rows = max(1, elements // width)
        x, g, r = (torch.randn(rows, width).to(dtype) for _ in range(3))
        w, b = torch.randn(width).to(dtype), torch.randn(width).to(dtype)
        size, shape, asked = f"{rows} x {width}", (width,), width in (768, 1600, 4096)
        _, mean, rstd = torch.native_layer_norm(x, shape, w, b, 1e-5)
        flat = mean.flatten(), rstd.flatten()
        if dtype != torch.float32:
            flat = flat[0].float(), flat[1].float()
        yield Case(
            "layer_norm forward", size, 2 * x.nbytes + 8 * rows,
            lambda x=x, w=w, b=b: OPS.layer_norm(x, w, b, 1e-5),
            lambda x=x, w=w, b=b, s=shape: torch.native_layer_norm(x, s, w, b, 1e-5), 0.90 if asked else None,
        )  # fmt: skip
        yield Case(
            "layer_norm backward", size, 3 * x.nbytes + 8 * rows,
            lambda g=g, x=x, f=flat, w=w: OPS.layer_norm_backward(g, x, *f, w),
            lambda g=g, x=x, m=(mean, rstd), w=w, b=b, s=shape: torch.ops.aten.native_layer_norm_backward(
                g, x, s, *m, w, b, [True, True, True]
            ),
            0.85 if asked else None,
        )  # fmt: skip
        yield Case(
            "add_layer_norm forward", size, 4 * x.nbytes + 8 * rows,
            lambda x=x, r=r, w=w, b=b: OPS.add_layer_norm(x, r, w, b, 1e-5),
            lambda x=x, r=r, w=w, b=b, s=shape: torch.native_layer_norm(x + r, s, w, b, 1e-5),
        )  # fmt: skip


def pointwise_cases(elements: int, dtype: torch.dtype) -> Iterator[Case]:
    """Bias, GELU, dropout and residual."""
    for width in (768, 3072, 6400):
        rows = max(1, elements // width)
        x, g, r = (torch.randn(rows, width).to(dtype) for _ in range(3))
        b, seed = torch.randn(width).to(dtype), torch.tensor(5)
        size = f"{rows} x {width}"
        for form, tanh in (("tanh", True), ("none", False)):
            yield Case(
                f"bias_gelu {form} forward", size, 2 * x.nbytes,
                lambda x=x, b=b, t=tanh: OPS.bias_gelu(x, b, t),
                lambda x=x, b=b, f=form: F.gelu(x + b, approximate=f),
            )  # fmt: skip
            yield Case(
                f"bias_gelu {form} backward", size, 3 * x.nbytes,
                lambda g=g, x=x, b=b, t=tanh: OPS.bias_gelu_backward(g, x, b, t),
                lambda g=g, u=x + b, f=form: torch.ops.aten.gelu_backward(g, u, approximate=f).sum(0),
            )  # fmt: skip
        yield Case(
            "bias_dropout_add forward", size, 3 * x.nbytes,
            lambda x=x, b=b, r=r, s=seed: OPS.bias_dropout_add(x, b, r, s, 0.1),
            lambda x=x, b=b, r=r: r + F.dropout(x + b, 0.1, True),
        )  # fmt: skip
        mask = torch.rand(rows, width) > 0.1
        yield Case(
            "bias_dropout_add backward", size, 2 * x.nbytes,
            lambda g=g, b=b, s=seed: OPS.bias_dropout_add_backward(g, b, s, 0.1),
            lambda g=g, m=mask: torch.ops.aten.native_dropout_backward(g, m, 1 / 0.9).sum(0),
        )  # fmt: skip


def cross_entropy_cases(elements: int, dtype: torch.dtype) -> Iterator[Case]:
    """Logits of two vocabularies."""
    for width in (8192, 50304):
        rows = max(1, elements // width)
        x, labels, g = torch.randn(rows, width).to(dtype), torch.randint(width, (rows,)), torch.randn(rows)
        _, top, total = OPS.cross_entropy(x, labels, x.size(1))
        log = torch.log_softmax(x.float(), -1)
        weight = torch.tensor(float(rows))
        yield Case(
            "cross_entropy forward", f"{rows} x {width}", x.nbytes,
            lambda x=x, n=labels: OPS.cross_entropy(x, n, x.size(1)),
            lambda x=x, n=labels: F.cross_entropy(x.float(), n, reduction="none"),
        )  # fmt: skip
        yield Case(
            "cross_entropy backward", f"{rows} x {width}", 2 * x.nbytes,
            lambda g=g, x=x, n=labels, t=top, s=total: OPS.cross_entropy_backward(g, x, n, t, s, 0, x.size(1)),
            lambda g=g, log=log, n=labels, w=weight: torch._log_softmax_backward_data(
                torch.ops.aten.nll_loss_backward(g, log, n, None, 0, -100, w), log, -1, torch.float32
            ),
        )  # fmt: skip


GROUPS = {
    "softmax": softmax_cases, "layer_norm": layer_norm_cases, "pointwise": pointwise_cases,
    "cross_entropy": cross_entropy_cases,
}  # fmt: skip


def memcpy(size: int, threads: int) -> Callable[[], object]:
    """Moves `size` bytes, half of them read and half written, on so many threads."""
    share = max(64, size // 2 // threads // 64 * 64)
    pairs = [(torch.ones(share, dtype=torch.uint8), torch.ones(share, dtype=torch.uint8)) for _ in range(threads)]
    if threads == 1:
        (a, b), libc = pairs[0], ctypes.CDLL(None)
        return lambda: libc.memcpy(ctypes.c_void_p(b.data_ptr()), ctypes.c_void_p(a.data_ptr()), ctypes.c_size_t(share))
    pool = ThreadPoolExecutor(threads)
    return lambda: list(pool.map(lambda p: ctypes.memmove(p[1].data_ptr(), p[0].data_ptr(), share), pairs))


def measure(case: Case, turns: int, threads: int) -> dict[str, object]:
    """Seconds of the three, taking turns; short calls are repeated within a turn."""
    contenders = {"ours": case.ours, "aten": case.aten, "copy": memcpy(case.floor, threads)}
    clock = time.process_time if threads == 1 else time.perf_counter
    began = time.perf_counter()
    for call in contenders.values():
        call()
    repeat = max(1, int(0.01 / (time.perf_counter() - began)))
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(turns):
        names = list(contenders)
        for name in names[turn % 3 :] + names[: turn % 3]:
            start = clock()
            for _ in range(repeat):
                contenders[name]()
            times[name].append((clock() - start) / repeat)
    # Of each turn, not of the best ones: what memory gives changes within a second, and neighbours see the same.
    of_copy = median(copy / ours for copy, ours in zip(times["copy"], times["ours"], strict=True))
    x_aten = median(aten / ours for aten, ours in zip(times["aten"], times["ours"], strict=True))
    return {
        "operator": case.name, "size": case.size, "floor_MB": case.floor / 1e6, "ours_ms": min(times["ours"]) * 1e3,
        "of_copy": of_copy, "of_lines": of_copy * (case.lines or case.floor) / case.floor, "x_aten": x_aten,
        "goal": case.goal, "met": of_copy >= (case.goal or 0.0) and x_aten >= 1.0,
        "copy_GB_s": case.floor / min(times["copy"]) / 1e9,
    }  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=GROUPS)
    parser.add_argument("--megabytes", type=float, default=64, help="size of one tensor")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--turns", type=int, default=25)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    machine.keep_freed_memory()
    if not has_kernel("layer_norm", "cpu"):
        parser.error("the kernels are not built: python csrc/build.py")
    dtype = getattr(torch, args.dtype)
    elements = int(args.megabytes * 1e6) // dtype.itemsize
    where = machine.describe()
    print(" ".join(f"{name}: {value}" for name, value in where.items()))
    print(f"{'operator':30s}{'size':>20s}{'ms':>9s}{'of copy':>9s}{'goal':>6s}{'lines':>7s}{'x ATen':>8s}  met")
    rows = []
    with torch.no_grad():
        for group in [args.only] if args.only else GROUPS:
            for case in GROUPS[group](elements, dtype):
                row = measure(case, args.turns, args.threads)
                rows.append(row)
                goal = f"{case.goal:.2f}" if case.goal else ""
                print(
                    f"{row['operator']:30s}{row['size']:>20s}{row['ours_ms']:9.3f}{row['of_copy']:9.2f}{goal:>6s}"
                    f"{row['of_lines']:7.2f}{row['x_aten']:8.2f}  {'yes' if row['met'] else 'NO'}", flush=True
                )  # fmt: skip
    print(f"{sum(bool(row['met']) for row in rows)} of {len(rows)} goals met")
    settings = {k: v for k, v in vars(args).items() if k != "json"}
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps({"benchmark": "kernels_cpu", **where, **settings, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
