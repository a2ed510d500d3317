"""Operators of megatron_slw/ops on a GPU: checked, then timed beside a copy, ATen, torch.compile, Liger and apex.

    MEGATRON_SLW_CUDA=1 python csrc/build.py
    python benchmarks/gpu/kernels.py --json benchmarks/results/kernels_h200.json     # about four minutes
    python benchmarks/gpu/kernels.py --tiny                                          # its code paths, on a CPU too

Needs torch and the repository, nothing else. Each operator is first compared with fp64 on fresh random inputs, outputs
poisoned before. Then the peers take turns, timed by events; a figure is the median time, the bytes of the operator's
floor over it, and that over the rate of a device-to-device copy measured in the same run. Inputs rotate among sets that
together are several times the second-level cache. Peers that are not installed are left out. The JSON is written anew
after each row, so that what a time limit cuts off is the end of the list alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from megatron_slw.ops import bias_gelu, cross_entropy, layer_norm, softmax  # noqa: F401  declare
from megatron_slw.ops.dropout_residual import philox_words
from megatron_slw.ops.library import has_kernel

OPS = torch.ops.megatron_slw
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Call = Callable[..., object]


@dataclass(frozen=True)
class Case:
    """One operator at one size: how to draw its inputs, the floor in bytes, ours, the truth, and the peers."""

    name: str
    size: str
    floor: int
    draw: Callable[[], tuple]
    ours: Call
    truth: Call | None = None
    peers: dict[str, Call] = field(default_factory=dict)


def randn(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, device=DEVICE).to(dtype)


def compiled(eager: Call) -> dict[str, Call]:
    """torch.compile's version; on a CPU it would compile for minutes to measure nothing."""
    return {"compile": torch.compile(eager)} if DEVICE == "cuda" else {}


def apex_layer_norm() -> dict[str, Call]:
    """NVIDIA's forward, where it is installed."""
    if find_spec("apex") is None or find_spec("apex.normalization") is None:
        return {}
    from apex.normalization.fused_layer_norm import fused_layer_norm_affine

    return {"forward": lambda x, w, b: fused_layer_norm_affine(x, w, b, tuple(w.shape), 1e-5)}


def liger_layer_norm() -> dict[str, Call]:
    """Liger's forward and backward, where it is installed."""
    if find_spec("liger_kernel") is None:
        return {}
    from liger_kernel.ops.layer_norm import layer_norm_backward, layer_norm_forward

    def backward(g: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, w: Tensor, b: Tensor) -> object:
        return layer_norm_backward(g, x, w, b, mean, rstd)

    return {"forward": lambda x, w, b: layer_norm_forward(x, w, b, 1e-5), "backward": backward}


def apex_softmax() -> dict[str, Call]:
    """The triangular softmax of NVIDIA's apex, where it is installed."""
    if find_spec("scaled_upper_triang_masked_softmax_cuda") is None:
        return {}
    import scaled_upper_triang_masked_softmax_cuda as apex

    return {"forward": lambda x: apex.forward(x, 0.125), "backward": lambda g, y: apex.backward(g.clone(), y, 0.125)}


def softmax_cases(elements: int, dtype: torch.dtype) -> Iterator[Case]:
    """Scores (A, S, S) with SLW's lengths."""
    apex = apex_softmax()
    for length in (8, 16, 64, 128, 256, 512, 1024, 2048, 4096):
        batch = max(1, elements // length**2)
        hidden = torch.ones(length, length, dtype=torch.bool, device=DEVICE).triu(1)
        square, triangle = batch * length**2 * dtype.itemsize, batch * length * (length + 1) // 2 * dtype.itemsize

        def eager(x: Tensor, hidden: Tensor = hidden) -> Tensor:
            return torch.softmax((x * 0.125).masked_fill(hidden, float("-inf")), -1)

        def eager_backward(g: Tensor, y: Tensor, hidden: Tensor = hidden) -> Tensor:
            return torch._softmax_backward_data(g, y, -1, y.dtype).masked_fill(hidden, 0.0) * 0.125

        def draw(shape: tuple[int, ...] = (batch, length, length)) -> tuple[Tensor]:
            return (randn(*shape, dtype=dtype),)

        def draw_backward(shape: tuple[int, ...] = (batch, length, length)) -> tuple[Tensor, Tensor]:
            return randn(*shape, dtype=dtype), OPS.causal_softmax(randn(*shape, dtype=dtype), 0.125, None)

        fits = dtype != torch.float32 and 16 < length <= 4096
        size = f"{batch} x {length} x {length}"
        peers: dict[str, Call] = {"aten": eager} | compiled(eager)
        backward: dict[str, Call] = {"aten": eager_backward} | compiled(eager_backward)
        if apex and fits:
            peers["apex"], backward["apex"] = apex["forward"], apex["backward"]
        yield Case(
            "causal_softmax forward", size, square + triangle, draw,
            lambda x: OPS.causal_softmax(x, 0.125, None), eager, peers,
        )  # fmt: skip
        yield Case(
            "causal_softmax backward", size, square + 2 * triangle, draw_backward,
            lambda g, y: OPS.causal_softmax_backward(g, y, 0.125, None), eager_backward, backward,
        )  # fmt: skip


def layer_norm_cases(elements: int, dtype: torch.dtype) -> Iterator[Case]:
    """Rows of model widths."""
    liger, apex = liger_layer_norm(), apex_layer_norm()
    for width in (768, 1024, 1280, 1600, 2048, 4096, 8192):
        rows, shape = max(1, elements // width), (width,)
        tensor = rows * width * dtype.itemsize
        w, b = randn(width, dtype=dtype), randn(width, dtype=dtype)

        def eager(x: Tensor, w: Tensor = w, b: Tensor = b, shape: tuple[int] = shape) -> Tensor:
            return F.layer_norm(x, shape, w.to(x.dtype), b.to(x.dtype), 1e-5)

        def draw(rows: int = rows, width: int = width) -> tuple[Tensor]:
            return (randn(rows, width, dtype=dtype),)

        def draw_backward(rows: int = rows, width: int = width, w: Tensor = w, b: Tensor = b) -> tuple[Tensor, ...]:
            x = randn(rows, width, dtype=dtype)
            _, mean, rstd = OPS.layer_norm(x, w, b, 1e-5)
            return randn(rows, width, dtype=dtype), x, mean, rstd

        def aten_backward(
            g: Tensor, x: Tensor, m: Tensor, r: Tensor, w: Tensor = w, b: Tensor = b, shape: tuple[int] = shape
        ) -> object:
            each = [True, True, True]
            w, b, m, r = w.to(x.dtype), b.to(x.dtype), m[:, None], r[:, None]
            return torch.ops.aten.native_layer_norm_backward(g, x, shape, m, r, w, b, each)

        size = f"{rows} x {width}"
        peers: dict[str, Call] = {"aten": eager} | compiled(eager)
        backward: dict[str, Call] = {"aten": aten_backward}
        if apex:
            peers["apex"] = lambda x, w=w, b=b: apex["forward"](x, w, b)
        if liger:
            peers["liger"] = lambda x, w=w, b=b: liger["forward"](x, w, b)
            backward["liger"] = lambda g, x, m, r, w=w, b=b: liger["backward"](g, x, m, r, w, b)
        yield Case(
            "layer_norm forward", size, 2 * tensor + 8 * rows, draw,
            lambda x, w=w, b=b: OPS.layer_norm(x, w, b, 1e-5)[0], eager, peers,
        )  # fmt: skip
        yield Case(
            "layer_norm backward", size, 3 * tensor + 8 * rows, draw_backward,
            lambda g, x, m, r, w=w: OPS.layer_norm_backward(g, x, m, r, w), aten_backward, backward,
        )  # fmt: skip


def pointwise_cases(elements: int, dtype: torch.dtype) -> Iterator[Case]:
    """Bias + GELU and bias + dropout + residual."""
    for width in (3072, 6400):
        rows = max(1, elements // width)
        tensor, size = rows * width * dtype.itemsize, f"{rows} x {width}"
        b, seed = randn(width, dtype=dtype), torch.tensor(5, device=DEVICE)

        def gelu(x: Tensor, b: Tensor = b) -> Tensor:
            return F.gelu(x + b.to(x.dtype), approximate="tanh")

        def gelu_backward(g: Tensor, x: Tensor, b: Tensor = b) -> tuple[Tensor, Tensor]:
            whole = torch.ops.aten.gelu_backward(g, x + b.to(x.dtype), approximate="tanh")
            return whole, whole.sum(0)

        def true_dropped(x: Tensor, r: Tensor, b: Tensor = b, seed: Tensor = seed) -> Tensor:
            kept = (philox_words(seed, x.numel()) >= int(0.1 * 2**32)).view(x.shape)
            return r + (x + b.to(x.dtype)) * kept / 0.9

        def dropped(x: Tensor, r: Tensor, b: Tensor = b) -> Tensor:
            return r + F.dropout(x + b, 0.1, True)

        def draw(count: int, shape: tuple[int, int] = (rows, width)) -> tuple[Tensor, ...]:
            return tuple(randn(*shape, dtype=dtype) for _ in range(count))

        yield Case(
            "bias_gelu forward", size, 2 * tensor, lambda draw=draw: draw(1),
            lambda x, b=b: OPS.bias_gelu(x, b, True), gelu, {"aten": gelu} | compiled(gelu),
        )  # fmt: skip
        yield Case(
            "bias_gelu backward", size, 3 * tensor, lambda draw=draw: draw(2),
            lambda g, x, b=b: OPS.bias_gelu_backward(g, x, b, True), gelu_backward,
            {"aten": lambda g, x: torch.ops.aten.gelu_backward(g, x, approximate="tanh").sum(0)},
        )  # fmt: skip
        yield Case(
            "bias_dropout_add forward", size, 3 * tensor, lambda draw=draw: draw(2),
            lambda x, r, b=b, s=seed: OPS.bias_dropout_add(x, b, r, s, 0.1), true_dropped,
            {"aten": dropped} | compiled(dropped),
        )  # fmt: skip


def cross_entropy_cases(elements: int, dtype: torch.dtype) -> Iterator[Case]:
    """The GPT-2 vocabulary."""
    width = 50304
    rows = max(1, elements // width)
    tensor = rows * width * dtype.itemsize
    labels = torch.randint(width, (rows,), device=DEVICE)

    def eager(x: Tensor) -> Tensor:
        return F.cross_entropy(x if x.dtype == torch.float64 else x.float(), labels, reduction="none")

    def true_backward(g: Tensor, x: Tensor, *_: Tensor) -> Tensor:
        return (x.softmax(1) - F.one_hot(labels, width)) * g[:, None]

    def draw_backward() -> tuple[Tensor, ...]:
        x = randn(rows, width, dtype=dtype)
        return torch.randn(rows, device=DEVICE), x, *OPS.cross_entropy(x, labels, width)[1:]

    yield Case(
        "cross_entropy forward", f"{rows} x {width}", tensor, lambda: (randn(rows, width, dtype=dtype),),
        lambda x: OPS.cross_entropy(x, labels, width)[0], eager, {"aten": eager} | compiled(eager),
    )  # fmt: skip
    yield Case(
        "cross_entropy backward", f"{rows} x {width}", 2 * tensor, draw_backward,
        lambda g, x, t, s: OPS.cross_entropy_backward(g, x, labels, t, s, 0, width), true_backward,
    )  # fmt: skip


GROUPS = {
    "softmax": softmax_cases, "layer_norm": layer_norm_cases, "pointwise": pointwise_cases,
    "cross_entropy": cross_entropy_cases,
}  # fmt: skip


def error_of(case: Case) -> float:
    """The norm of the difference from fp64 over that of fp64, over all outputs; NaN stays NaN."""
    if case.truth is None:
        return 0.0
    given = case.draw()
    poison = [torch.full_like(x, float("nan")) for x in given if x.is_floating_point()]
    del poison  # what is allocated next is made of it
    found, truth = case.ours(*given), case.truth(*(x.double() if x.is_floating_point() else x for x in given))
    pairs = zip(found, truth, strict=True) if isinstance(found, tuple) else [(found, truth)]
    return max(float((a.double() - b).norm() / b.double().norm()) for a, b in pairs)


def timed(run: Callable[[], object]) -> float:
    """Milliseconds on the device."""
    if DEVICE == "cpu":
        began = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - began)
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop)


def milliseconds(calls: dict[str, Call], sets: list[tuple], turns: int) -> dict[str, float]:
    """Medians; the calls take turns, each on the next set of inputs."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call(*sets[0])
    for turn in range(turns):
        for name, call in calls.items():
            elapsed = timed(lambda call=call: [call(*given) for given in sets])
            if turn:
                times[name].append(elapsed / len(sets))
    return {name: statistics.median(values) for name, values in times.items()}


def measure(case: Case, turns: int) -> dict[str, object]:
    """One row of the table: times, bytes per second, and the share of the copy's."""
    error = error_of(case)
    if not error < 2e-2:
        raise SystemExit(f"{case.name} {case.size}: off by {error}")
    sets = [case.draw() for _ in range(3)]
    a, b = (torch.empty(max(1, case.floor // 2), dtype=torch.uint8, device=DEVICE).random_() for _ in range(2))
    times = milliseconds({"ours": case.ours, "copy": lambda *_: b.copy_(a), **case.peers}, sets, turns)
    rates = {name: case.floor / ms / 1e6 for name, ms in times.items()}
    shares = {name: times["copy"] / ms for name, ms in times.items()}
    return {
        "operator": case.name, "size": case.size, "floor_MB": case.floor / 1e6, "error": error, "ms": times,
        "GB_s": rates, "of_copy": shares,
    }  # fmt: skip


def write(args: argparse.Namespace, rows: list[dict[str, object]]) -> None:
    """All rows so far, with the machine."""
    gpu = torch.cuda.get_device_name() if DEVICE == "cuda" else "none"
    machine = {"gpu": gpu, "torch": torch.__version__, "cuda": torch.version.cuda}
    settings = {k: v for k, v in vars(args).items() if k != "json"}
    args.json.parent.mkdir(parents=True, exist_ok=True)
    result = {"benchmark": "gpu/kernels", "machine": machine, **settings, "rows": rows}
    args.json.write_text(json.dumps(result, indent=1) + "\n")


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=GROUPS)
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--megabytes", type=float, default=256, help="size of one tensor")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=250.0, help="begin no measurement after this time")
    parser.add_argument("--tiny", action="store_true", help="small tensors and two turns: whether it runs")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    if args.tiny:
        args.megabytes, args.turns = 0.02, 2
    elif DEVICE == "cpu" or not has_kernel("layer_norm", "cuda"):
        parser.error("this needs a GPU and the CUDA kernels: MEGATRON_SLW_CUDA=1 python csrc/build.py; or --tiny")
    return args


def main(argv: list[str] | None = None) -> int:
    """Print the table; write it as JSON if asked."""
    args = arguments(argv)
    torch._dynamo.config.cache_size_limit = 64
    dtype, rows, ends = getattr(torch, args.dtype), [], time.monotonic() + args.seconds
    elements = int(args.megabytes * 1e6) // dtype.itemsize
    print(f"{'operator':28s}{'size':>22s}{'ms':>9s}{'GB/s':>8s}  share of a copy, ours and peers")
    with torch.no_grad():
        for group in [args.only] if args.only else GROUPS:
            for case in GROUPS[group](elements, dtype):
                if time.monotonic() > ends:
                    print(f"{args.seconds:g} s are over: not measured from {case.name} {case.size} on")
                    return 0
                row = measure(case, args.turns)
                rows.append(row)
                shares = "  ".join(f"{name} {share:.2f}" for name, share in row["of_copy"].items() if name != "copy")
                print(
                    f"{case.name:28s}{case.size:>22s}{row['ms']['ours']:9.3f}{row['GB_s']['ours']:8.0f}  {shares}",
                    flush=True,
                )
                if args.json:
                    write(args, rows)
                if DEVICE == "cuda":
                    torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
