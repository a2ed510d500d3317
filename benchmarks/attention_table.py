"""Where scores, fused softmax and product beat PyTorch's attention on the CPU: the table behind `attention: auto`.

    python benchmarks/attention_table.py [--tokens 2048] [--json FILE]

Forward and backward of so many tokens at each length, for heads of several shapes; processor time of
`scaled_dot_product_attention` over that of `attend`, each the best of turns that alternate. Above 1 the fused softmax
is faster. A star marks what `attention: auto` picks, so a star below 1, or none well above 1, speaks against its rule.
Written to benchmarks/results/attention_table.json. About two minutes on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import machine
from megatron_slw.ops.backend import attend, select_operators
from megatron_slw.ops.choice import picks_fused_softmax

RESULTS = Path(__file__).parent / "results" / "attention_table.json"
LENGTHS = (8, 16, 32, 64, 128, 256, 512, 1024)
SHAPES = ((3, 64), (12, 64), (16, 32), (8, 128))
"""Heads and their width: the quickstart's, GPT-2's, narrower and wider ones."""


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attend(q, k, v, None, 0.0)


def seconds(function: Callable[[Tensor, Tensor, Tensor], Tensor], leaves: list[Tensor], grad: Tensor) -> float:
    """Processor time of one forward and backward."""
    began = time.process_time()
    torch.autograd.grad(function(*leaves), leaves, grad)
    return time.process_time() - began


def ratio(tokens: int, length: int, heads: int, width: int, turns: int) -> float:
    """sdpa over fused, best of the turns of each."""
    shape = (max(1, tokens // length), heads, length, width)
    leaves = [torch.randn(shape, requires_grad=True) for _ in range(3)]
    grad = torch.randn(shape)
    best = {sdpa: float("inf"), fused: float("inf")}
    for turn in range(turns + 1):
        for function in (sdpa, fused) if turn % 2 else (fused, sdpa):
            spent = seconds(function, leaves, grad)
            if turn:
                best[function] = min(best[function], spent)
    return best[sdpa] / best[fused]


def main(argv: list[str] | None = None) -> int:
    """Print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--turns", type=int, default=40)
    parser.add_argument("--json", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    operators = select_operators("auto", "cpu")
    if not operators.fused:
        parser.error("the kernels are not built: python csrc/build.py")
    where = machine.describe()
    print(" ".join(f"{name}: {value}" for name, value in where.items()))
    print(f"{'sdpa / fused_softmax':22s}" + "".join(f"{length:8d}" for length in LENGTHS))
    rows = []
    for heads, width in SHAPES:
        print(f"{f'{heads} heads of {width}':22s}", end="", flush=True)
        for length in LENGTHS:
            found = ratio(args.tokens, length, heads, width, args.turns)
            picked = picks_fused_softmax("auto", operators.fused, "cpu", length, width)
            rows.append({"heads": heads, "width": width, "length": length, "ratio": found, "auto_picks_fused": picked})
            print(f"{found:7.2f}{'*' if picked else ' '}", end="", flush=True)
        print()
    args.json.parent.mkdir(parents=True, exist_ok=True)
    result = {"benchmark": "attention_table", **where, "tokens": args.tokens, "turns": args.turns, "rows": rows}
    args.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
