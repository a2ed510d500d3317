"""Peak memory of the output head and its loss, forward and backward: chunked beside F.cross_entropy on all logits.

    python benchmarks/loss_memory.py [--tokens 8192 --vocab 50304 --hidden 768] [--json FILE]

Each runs in a process of its own; the figure is the rise of the process's peak resident size over its size before the
first logits. Loss and gradient norms are printed too: they must agree.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from megatron_slw.ops.linear_cross_entropy import linear_cross_entropy


def resident() -> float:
    """Peak resident size of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def run(variant: str, tokens: int, vocab: int, hidden: int) -> dict[str, float]:
    """Mean loss, norms of both gradients, seconds, and the rise of the peak in MB."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(tokens, hidden, generator=generator).requires_grad_()
    weight = (torch.randn(vocab, hidden, generator=generator) * hidden**-0.5).requires_grad_()
    labels = torch.randint(vocab, (tokens,), generator=generator)
    linear_cross_entropy(x[:2], weight[:9], labels[:2] % 9).sum().backward()  # what is loaded once
    x.grad = weight.grad = None
    before, began = resident(), time.perf_counter()
    if variant == "chunked":
        loss = linear_cross_entropy(x, weight, labels).mean()
    else:
        loss = F.cross_entropy(x @ weight.T, labels)
    loss.backward()
    assert x.grad is not None and weight.grad is not None, "no gradient"
    norms = {"grad_x": float(x.grad.norm()), "grad_weight": float(weight.grad.norm())}
    return {"loss": loss.item(), **norms, "seconds": time.perf_counter() - began, "peak_MB": resident() - before}


def compare(tokens: int, vocab: int, hidden: int) -> dict[str, dict[str, float]]:
    """Both variants, each in a new process."""
    results = {}
    for variant in ("chunked", "materialised"):
        command = [sys.executable, __file__, "--variant", variant]
        command += ["--tokens", str(tokens), "--vocab", str(vocab), "--hidden", str(hidden)]
        results[variant] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return results


def main(argv: list[str] | None = None) -> int:
    """Print the table; write it as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--vocab", type=int, default=50304)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--variant", choices=["chunked", "materialised"], help="one alone, as JSON")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    size = (args.tokens, args.vocab, args.hidden)
    if args.variant:
        print(json.dumps(run(args.variant, *size)))
        return 0
    results = compare(*size)
    for name, result in results.items():
        print(f"{name:14s}" + "".join(f"{key} {value:10.6g}   " for key, value in result.items()))
    ratio = results["materialised"]["peak_MB"] / results["chunked"]["peak_MB"]
    print(f"peak memory materialised / chunked {ratio:.1f}")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        sizes = {"tokens": args.tokens, "vocab": args.vocab, "hidden": args.hidden}
        content = {"benchmark": "loss_memory", "torch": torch.__version__, **sizes, "ratio": ratio, **results}
        args.json.write_text(json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
