"""Training steps of the GPT of this repository on one GPU: ops.backend torch and csrc, eager and compiled.

    python benchmarks/gpu/train.py [--layers 12 --hidden 768 --heads 12 --length 1024 --rows 16] [--json FILE]

No dataset and no DeepSpeed engine: forward, loss, backward, AdamW over random tokens, bf16 weights.
Prints tokens per second, model FLOPs utilization against --peak-tflops (6 N + 12 L d T per token), and peak memory. The
variants run one after the other; the figures are medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from megatron_slw.config.schema import OpsConfig, RunConfig
from megatron_slw.model.gpt import GPT, WeightedLoss
from megatron_slw.model.init import initialize_weights
from megatron_slw.parallel.groups import one_process_groups
from megatron_slw.testing import tiny_config

Step = Callable[[torch.Tensor], None]


def config_of(args: argparse.Namespace, backend: str) -> RunConfig:
    """The model of the command line with one implementation of the operators."""
    config = tiny_config(
        "unused", model__num_layers=args.layers, model__hidden_size=args.hidden,
        model__num_attention_heads=args.heads, model__seq_length=args.length, model__vocab_size=args.vocab,
        model__hidden_dropout=args.dropout, model__attention_dropout=0.0, curriculum=None,
    )  # fmt: skip
    return config.model_copy(update={"ops": OpsConfig(backend=backend)})


def make_step(config: RunConfig, compiled: bool, device: str) -> tuple[Step, int]:
    """One optimizer step on token ids (B, T + 1), and the number of parameters."""
    groups = one_process_groups(device)
    model = GPT(config, groups)
    initialize_weights(model, config.model, 1)
    model.to(device=device, dtype=torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=device != "cpu")
    loss_fn, run = WeightedLoss(config, groups), torch.compile(model) if compiled else model

    def step(ids: torch.Tensor) -> None:
        labels = ids[:, 1:]
        weights = torch.full(labels.shape, 1.0 / labels.numel(), device=ids.device)
        loss_fn(run(ids[:, :-1]), (labels, weights)).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step, sum(p.numel() for p in model.parameters())


def main(argv: list[str] | None = None) -> int:
    """Print the table; write it as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"layers": 12, "hidden": 768, "heads": 12, "length": 1024, "rows": 16, "vocab": 50257, "steps": 20}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--peak-tflops", type=float, default=989.0)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--variants", nargs="+", default=["torch", "csrc", "torch+compile", "csrc+compile"])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    ids = torch.randint(args.vocab, (args.rows, args.length + 1), device=args.device)
    tokens, rows = args.rows * args.length, []
    synchronize = torch.cuda.synchronize if args.device == "cuda" else lambda: None
    for variant in args.variants:
        backend, _, compiled = variant.partition("+")
        step, parameters = make_step(config_of(args, backend), bool(compiled), args.device)
        times = []
        for number in range(args.steps + 3):
            synchronize()
            began = time.perf_counter()
            step(ids)
            synchronize()
            if number >= 3:
                times.append(time.perf_counter() - began)
        seconds = statistics.median(times)
        flops = tokens * (6 * parameters + 12 * args.layers * args.hidden * args.length)
        memory = torch.cuda.max_memory_allocated() / 2**30 if args.device == "cuda" else 0.0
        rows.append({"variant": variant, "tokens_per_s": tokens / seconds, "memory_GiB": memory})
        mfu = flops / seconds / args.peak_tflops / 1e12
        print(f"{variant:16s}{tokens / seconds:12,.0f} tokens/s   MFU {mfu:5.1%}   {memory:6.1f} GiB", flush=True)
        del step
        if args.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        settings = {k: v for k, v in vars(args).items() if k != "json"}
        args.json.write_text(json.dumps({"benchmark": "gpu/train", **settings, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
